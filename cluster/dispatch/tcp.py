"""How our TCP connections are set up: for messages with pauses between them, whose answers are waited for."""

from __future__ import annotations

import ipaddress
import socket
from contextlib import suppress

OPTION: int | None = getattr(socket, "TCP_CONGESTION", None)
NAME_BYTES = 16
BBR, INSTEAD = b"bbr", (b"cubic", b"reno")
"""A process without rights may choose reno, and whatever else the machine allows."""


def prepare(sock: socket.socket) -> None:
    """Send at once, and to other machines with a congestion control that does not pace.

    Once more when it has connected, of a socket that is still to: only then is it known where it leads.
    """
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with suppress(OSError):  # it leads nowhere yet, or no more
        if leaves_the_machine(sock):
            unpace(sock)


def leaves_the_machine(sock: socket.socket) -> bool:
    """Whether the other end of a connected socket is on another machine. Raises OSError if there is none."""
    if sock.family == socket.AF_UNIX:
        return False
    here, there = sock.getsockname()[0], sock.getpeername()[0]
    # The kernel takes no packet from outside that says it comes from one of our own addresses.
    return here != there and not ipaddress.ip_address(there).is_loopback


def unpace(sock: socket.socket) -> None:
    """Replace BBR, and nothing else.

    BBR sends at the rate that it has measured, and a connection that waits for answers most of the time has
    never shown it more than a few messages a round trip: with 20 ms each way and 128 streams a router had
    0.39 of the throughput that the delay allows, with cubic 0.8 to 0.9 (docs/decisions/0031).
    """
    if congestion_control(sock) != BBR:
        return
    assert OPTION is not None, "it has a name"
    for name in INSTEAD:
        with suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, OPTION, name)
            return


def congestion_control(sock: socket.socket) -> bytes:
    """Its name, b"" where the system does not tell."""
    if OPTION is None:
        return b""
    return sock.getsockopt(socket.IPPROTO_TCP, OPTION, NAME_BYTES).partition(b"\0")[0]
