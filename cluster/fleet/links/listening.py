"""Ports of this host that answer other hosts for the time of a survey."""

from __future__ import annotations

import errno
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

from cluster.dispatch import tcp
from cluster.errors import Unauthenticated
from cluster.fleet import ports
from cluster.fleet.links import greeting

ECHO_BYTES = 16
MOST_ECHOES = 1000
MOST_BYTES = 32 << 20
"""That a connection may send; 10 Gbit/s send them in 27 ms, enough to see that rate."""

COUNT_S = 0.5
"""How long bytes of a connection are counted, from the first one on."""

GREETING_S = 3.0
CONNECTION_S = 15.0
"""A connection is closed then, whatever it does."""

AT_ONCE = 32
"""Connections beyond are closed at once; a survey has one, and one for each port while it tries them."""

POLL_S = 0.1
COUNTED = struct.Struct("<d")
"""Bytes per second, little-endian, as the listener saw them."""

LARGEST_READ = 1 << 18

OURS, RUNNING, TAKEN, IDLE = "listening", "running", "taken", "idle"
"""What is at a port of a host: this listener; the fleet that runs there; something else; or nothing, because
the fleet that runs there may take it any moment."""


class Listening:
    """Answers until `close`, or for `seconds`. Use as a context manager."""

    def __init__(self, secret: bytes, seconds: float) -> None:
        self._secret, self._deadline = secret, time.monotonic() + seconds
        self._selector = selectors.DefaultSelector()
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._accepting = threading.Thread(target=self._accept, name="survey", daemon=True)

    def start(self, address: str, wanted: Iterable[int]) -> dict[int, str]:
        """Listen where nobody does; returns OURS, TAKEN or the system's words by port. Port 0, any, is there
        under its number."""
        states = {}
        for port in wanted:
            try:
                sock = ports.listen(address, port)
            except OSError as error:
                states[port] = TAKEN if error.errno == errno.EADDRINUSE else ports.reason(error)
                continue
            sock.setblocking(False)
            self._selector.register(sock, selectors.EVENT_READ)
            states[sock.getsockname()[1]] = OURS
        self._accepting.start()
        return states

    def close(self) -> None:
        self._over.set()
        if self._accepting.is_alive():
            self._accepting.join()
        with self._lock:
            for sock in self._open:
                with suppress(OSError):  # it has ended
                    sock.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Listening:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _accept(self) -> None:
        while not self._over.is_set() and time.monotonic() < self._deadline:
            for key, _ in self._selector.select(POLL_S):
                assert isinstance(key.fileobj, socket.socket)
                with suppress(OSError):  # whoever came has gone again
                    self._take(key.fileobj.accept()[0])
        for key in list(self._selector.get_map().values()):
            assert isinstance(key.fileobj, socket.socket)
            key.fileobj.close()
        self._selector.close()

    def _take(self, sock: socket.socket) -> None:
        with self._lock:
            full = len(self._open) >= AT_ONCE
            if not full:
                self._open.add(sock)
        if full:
            sock.close()
        else:
            threading.Thread(target=self._serve, args=(sock,), name="survey", daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        try:
            with sock, suppress(OSError, Unauthenticated):  # told to nobody: anybody may knock
                sock.settimeout(GREETING_S)
                want = greeting.answer(sock, self._secret)
                tcp.prepare(sock)
                deadline = min(time.monotonic() + CONNECTION_S, self._deadline)
                (_echo if want == greeting.ECHO else _count)(sock, deadline, time.monotonic)
        finally:
            with self._lock:
                self._open.discard(sock)


def _echo(sock: socket.socket, deadline: float, clock: Callable[[], float]) -> None:
    for _ in range(MOST_ECHOES):
        sock.settimeout(max(deadline - clock(), POLL_S))
        sock.sendall(greeting.receive(sock, ECHO_BYTES))


def _count(sock: socket.socket, deadline: float, clock: Callable[[], float]) -> None:
    """Say how fast bytes came, and then read on until the sender has heard it: a connection that is closed
    with bytes unread is reset, and what was said is lost."""
    buffer = bytearray(LARGEST_READ)
    came: list[tuple[float, int]] = []
    total = 0
    told = False
    while total <= MOST_BYTES:
        sock.settimeout(max(deadline - clock(), POLL_S))
        count = sock.recv_into(buffer)
        if not count:
            return
        total += count
        came.append((clock(), total))
        if not told and (total >= MOST_BYTES or came[-1][0] - came[0][0] >= COUNT_S):
            sock.sendall(COUNTED.pack(rate(came)))
            told = True


def rate(came: Sequence[tuple[float, int]]) -> float:
    """Bytes per second. came: (seconds, bytes until then) of every read, in order.

    The larger of that of the whole time and that of its later half: most connections begin slowly, and some
    too fast, and then wait for what was lost. 0.0 where too few reads came to tell.
    """
    if len(came) < 2:
        return 0.0
    middle = (came[0][0] + came[-1][0]) / 2
    later = max(index for index, (when, _) in enumerate(came) if when <= middle)
    return max(_mean(came[0], came[-1]), _mean(came[later], came[-1]))


def _mean(begin: tuple[float, int], end: tuple[float, int]) -> float:
    seconds = end[0] - begin[0]
    return (end[1] - begin[1]) / seconds if seconds > 0 else 0.0
