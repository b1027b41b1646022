"""Sizes as people write them: 256MiB, 1.5 GB, 4096."""

from __future__ import annotations

import re

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
_BYTES = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", re.ASCII)


def read_size(text: str) -> int:
    """ "256MiB", "1.5 GB", "4096" as bytes. Raises ValueError, saying what a size looks like."""
    found = _BYTES.fullmatch(text)
    unit = _UNITS.get(found[2].lower()) if found else None
    if found is None or unit is None:
        raise ValueError(f"{text!r} is not a size; write 256MiB, 1.5GB or a number of bytes")
    return int(float(found[1]) * unit)


def format_bytes(count: int) -> str:
    """Such that `read_size` reads it back, exactly for whole units: 64 MiB is "64MiB"."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        size = _UNITS[unit.lower()]
        if count >= size and count % size == 0:
            return f"{count // size}{unit}"
    return str(count)


def about(count: float) -> str:
    """For people to read: three digits, "1.96 GiB"."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if count >= _UNITS[unit.lower()]:
            return f"{count / _UNITS[unit.lower()]:.3g} {unit}"
    return f"{count:.0f} bytes"
