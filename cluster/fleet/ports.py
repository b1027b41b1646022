"""Ports of this machine: taken, free, free again."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Iterable

from cluster.dispatch.handshake import split_address
from cluster.errors import ConfigError, PortInUse

POLL_S = 0.05


def check_free(host: str, port: int, option: str, beyond: int = 0) -> None:
    """Raises PortInUse, which names the option to change, also if the host is none of ours. Port 0 is always
    free. beyond: the port is so far above the one that the option says."""
    if said := problem(host, port):
        raise PortInUse(
            f"port {port} on {host} cannot be used ({said}); "
            f"stop what uses it or choose another: moemesh up {option} {host}:{port + 1 - beyond}"
        )


def problem(host: str, port: int) -> str:
    """Why nobody can listen there, "" if somebody can."""
    try:
        listen(host, port).close()
    except OSError as error:
        return reason(error)
    return ""


def reason(error: OSError) -> str:
    """In the system's words; Python adds the address, which whoever asks has named already."""
    return os.strerror(error.errno) if error.errno else str(error)


def resolve(address: str) -> str:
    """A name's address in numbers. Raises ConfigError for a name that nobody knows."""
    try:
        return socket.getaddrinfo(address, None, type=socket.SOCK_STREAM)[0][4][0]  # type: ignore[return-value]
    except OSError as error:
        raise ConfigError(f"{address} has no address ({error}); correct it in the fleet file") from None


def free_port(host: str) -> int:
    """A port that is free now; whoever gets it should bind it soon."""
    with listen(host, 0) as sock:
        port: int = sock.getsockname()[1]
        return port


def wait_free(addresses: Iterable[str], timeout_s: float) -> list[str]:
    """Wait until nobody listens at these host:port addresses; returns those that are taken still. Those of
    other machines are not looked at."""
    left = [address for address in addresses if address]
    deadline = time.monotonic() + timeout_s
    while True:
        left = [address for address in left if not _free(address)]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(POLL_S)


def _free(address: str) -> bool:
    try:
        listen(*split_address(address)).close()
    except OSError as error:
        return error.errno != errno.EADDRINUSE
    return True


def listen(host: str, port: int) -> socket.socket:
    """Raises OSError where that cannot be."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family)
