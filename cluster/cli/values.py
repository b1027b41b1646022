"""Values as people write them on a command line."""

from __future__ import annotations

import re

import typer

_UNITS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
    "tib": 1 << 40,
}
_BYTES = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*")


def parse_bytes(text: str, option: str) -> int:
    """ "256MiB", "1.5 GB", "4096" as bytes. Raises typer.BadParameter, which names the option."""
    found = _BYTES.fullmatch(text)
    unit = _UNITS.get(found[2].lower()) if found else None
    if found is None or unit is None:
        message = f"{text!r} is not a size; write 256MiB, 1.5GB or a number of bytes"
        raise typer.BadParameter(message, param_hint=option)
    return int(float(found[1]) * unit)


def format_bytes(count: int) -> str:
    """Such that `parse_bytes` reads it back, exactly for whole units: 64 MiB is "64MiB"."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        size = _UNITS[unit.lower()]
        if count >= size and count % size == 0:
            return f"{count // size}{unit}"
    return str(count)


def megabytes(count: float) -> str:
    """For people to read: "6.4 MB"."""
    return f"{count / 1e6:,.1f} MB"


def parse_address(text: str, option: str) -> tuple[str, int]:
    """ "HOST:PORT" as a pair, "[::1]:80" too. Raises typer.BadParameter, which names the option."""
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        message = f"{text!r} is not an address; write HOST:PORT with a port up to 65535"
        raise typer.BadParameter(message, param_hint=option)
    return host.strip("[]"), int(port)
