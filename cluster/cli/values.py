"""Values as people write them on a command line."""

from __future__ import annotations

import typer

from cluster.sizes import read_size


def parse_bytes(text: str, option: str) -> int:
    """ "256MiB", "1.5 GB", "4096" as bytes. Raises typer.BadParameter, which names the option."""
    try:
        return read_size(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None


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
