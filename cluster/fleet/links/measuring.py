"""From this host to another: which of its ports are reached, round trips, bytes per second."""

from __future__ import annotations

import errno
import os
import select
import selectors
import socket
import struct
import time
from collections.abc import Iterable
from contextlib import ExitStack

from cluster.dispatch import tcp
from cluster.fleet.links import greeting
from cluster.fleet.links.listening import COUNTED, ECHO_BYTES, MOST_BYTES

CONNECT_S = 3.5
"""TCP asks again after 1 and after 3 s: a lost packet or two are no firewall."""

ROUND_TRIPS, ROUND_TRIPS_S = 200, 0.5
"""At most so many, for at most so long, and at least one."""

ANSWER_S = 5.0
"""How long any answer on a connection that was made may take."""

SEND_BYTES = 1 << 16
OPEN, REFUSED, SILENT = "open", "refused", "no answer"
GONE = struct.pack("ii", 1, 0)
"""SO_LINGER: a connection is gone when it is closed, with what it has not sent yet."""


def reach(address: str, ports: Iterable[int]) -> dict[int, str]:
    """OPEN, REFUSED, SILENT or the system's words by port, of connections that are tried side by side."""
    found: dict[int, str] = {}
    with ExitStack() as stack, selectors.DefaultSelector() as selector:
        for port in ports:
            sock = stack.enter_context(_socket(address))
            sock.setblocking(False)
            number = sock.connect_ex((address, port))
            if number == errno.EINPROGRESS:
                selector.register(sock, selectors.EVENT_WRITE, port)
            else:
                found[port] = _said(number)
        deadline = time.monotonic() + CONNECT_S
        while selector.get_map() and (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                assert isinstance(key.fileobj, socket.socket)
                found[key.data] = _said(key.fileobj.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
                selector.unregister(key.fileobj)
        return found | {key.data: SILENT for key in selector.get_map().values()}


def _said(number: int) -> str:
    """Of an error's number."""
    names = {0: OPEN, errno.ECONNREFUSED: REFUSED, errno.ETIMEDOUT: SILENT}
    return names.get(number) or os.strerror(number)


def round_trips(address: str, port: int, secret: bytes) -> list[float]:
    """Seconds of each, one after the other, after a first one that is not counted. Raises OSError,
    Unauthenticated."""
    with _connected(address, port, secret, greeting.ECHO) as sock:
        _round_trip(sock)
        found = [_round_trip(sock)]
        begin = time.monotonic()
        while len(found) < ROUND_TRIPS and time.monotonic() - begin < ROUND_TRIPS_S:
            found.append(_round_trip(sock))
        return found


def _round_trip(sock: socket.socket) -> float:
    begin = time.perf_counter()
    sock.sendall(bytes(ECHO_BYTES))
    greeting.receive(sock, ECHO_BYTES)
    return time.perf_counter() - begin


def bandwidth(address: str, port: int, secret: bytes) -> float:
    """Bytes per second that arrive there. Raises OSError, Unauthenticated."""
    with _connected(address, port, secret, greeting.SINK) as sock:
        payload = memoryview(bytes(SEND_BYTES))
        left = MOST_BYTES
        while True:
            readable, writable, _ = select.select([sock], [sock] if left else [], [], ANSWER_S)
            if readable:
                found: float = COUNTED.unpack(greeting.receive(sock, COUNTED.size))[0]
                return found
            if not writable:
                raise TimeoutError("it takes no more bytes")
            left -= sock.send(payload[:left], socket.MSG_DONTWAIT)


def _connected(address: str, port: int, secret: bytes, want: bytes) -> socket.socket:
    sock = _socket(address)
    try:
        sock.settimeout(ANSWER_S)
        sock.connect((address, port))
        tcp.prepare(sock)
        greeting.ask(sock, secret, want)
    except BaseException:
        sock.close()
        raise
    return sock


def _socket(address: str) -> socket.socket:
    """address: in numbers."""
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, GONE)
    return sock
