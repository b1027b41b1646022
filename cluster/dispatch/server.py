"""A server of frames: one thread waits for all its connections, and never for a single one."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

import numpy as np

from cluster.dispatch.connection import MAX_QUEUED_BYTES, Connection
from cluster.dispatch.door import Door
from cluster.dispatch.frames import DEFAULT_LIMITS, Frame, Limits
from cluster.dispatch.greeting import Reception, must_seal
from cluster.dispatch.handshake import Identity, error_header
from cluster.dispatch.kinds import Kind
from cluster.dispatch.poller import READ, WRITE, Poller
from cluster.dispatch.strangers import Strangers, Turned
from cluster.dispatch.transport import Array
from cluster.errors import MoemeshError, PortInUse, ProtocolError, Tampered

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 1024
"""Of peers that have greeted."""

MAX_STRANGERS = 64
"""Connections at once whose peer has not greeted. A further one takes the place of the oldest."""

GREETING_S = 5.0
JOIN_S = 10.0

STAGING_BYTES = 256 << 10
USED = -1
_GREETING, _PING = (Kind.HELLO, Kind.PROOF), Kind.PING
_LISTENER, _WAKE = object(), object()
_DO_NOT_WAIT = np.zeros((0, 2), np.int32)


class FrameServer:
    """Calls back on its own thread:

    on_frame(connection, frame)   for every message but PING and greetings, which it answers itself. An error
                                  that the callback raises is answered with an ERROR frame.
    on_close(connection)          once for every connection on which on_frame may have been called
    on_round()                    after all that had arrived together was given to on_frame
    on_bytes(connection, staging) instead of reading, where the next byte begins a frame of a known peer: it
                                  may read the socket into `staging` [bytes] uint8, and returns USED, or the
                                  bytes read that it made nothing of (0: there were none)

    With an `identity` a peer must greet first (cluster/dispatch/greeting.py), within `greeting_s`, and is
    refused if it does not fit; `connection.peer` is then its Identity. Until then it may send small frames
    alone, and at most `max_strangers` may be about to.

    Lifecycle: start() → address, shutdown(); not restartable.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        on_frame: Callable[[Connection, Frame], None],
        on_close: Callable[[Connection], None] | None = None,
        on_round: Callable[[], None] | None = None,
        on_bytes: Callable[[Connection, Array], int] | None = None,
        identity: Identity | None = None,
        limits: Limits = DEFAULT_LIMITS,
        max_queued: int = MAX_QUEUED_BYTES,
        max_strangers: int = MAX_STRANGERS,
        greeting_s: float = GREETING_S,
        clock: Callable[[], float] = time.monotonic,
        name: str = "frames",
    ) -> None:
        self.turned = Turned()
        self._where = (host, port)
        self._address = ""
        self._on_frame = on_frame
        self._on_close = on_close
        self._on_round = on_round
        self._on_bytes = on_bytes or _leave
        self._takes_bytes = on_bytes is not None
        self._staging = np.zeros(STAGING_BYTES if on_bytes else 0, np.uint8)
        self._identity = identity
        self._limits = limits
        self._max_queued = max_queued
        self._strangers = Strangers(max_strangers, greeting_s, clock)
        self._name = name
        self._poller = Poller()
        self.alone = False
        """For callbacks: nothing else has arrived together with what they are given."""
        self._connections: set[Connection] = set()
        self._receptions: dict[Connection, Reception] = {}
        self._watched: dict[Connection, Array] = {}
        self._blocked: deque[Connection] = deque()
        self._stopping = False
        self._door: Door | None = None
        self._thread: threading.Thread | None = None
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)

    @property
    def address(self) -> str:
        """ "host:port", with the port that the system chose if 0 was asked for; "" before start()."""
        return self._address

    @property
    def connections(self) -> int:
        return len(self._connections)

    @property
    def strangers(self) -> int:
        """Connections whose peer has not greeted yet."""
        return len(self._strangers)

    def watched(self, connection: Connection) -> Array:
        """For callbacks: what this thread waits for, `connection` first, as express.take_request takes it;
        nothing while there are strangers, whose time is watched in the loop."""
        if self._strangers:
            return _DO_NOT_WAIT
        watched = self._watched.get(connection)
        if watched is None:
            assert self._door is not None
            others = (other.fd for other in self._connections if other is not connection)
            fds = connection.fd, self._wake_out.fileno(), self._door.fileno(), *others
            watched = self._watched[connection] = np.zeros((len(fds), 2), np.int32)
            watched[:, 0] = fds
        return watched

    def start(self) -> str:
        """Listen and serve; returns the address. Raises PortInUse."""
        try:
            self._door = Door(*self._where)
        except PortInUse:
            self._release()
            raise
        self._address = self._door.address
        self._poller.register(self._door, READ, _LISTENER)
        self._poller.register(self._wake_out, READ, _WAKE)
        self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        self._thread.start()
        return self.address

    def shutdown(self) -> None:
        """Close every connection and the port, and wait for the thread; idempotent, callable from any thread.

        From a callback it only asks the thread to stop.
        """
        self._stopping = True
        self.wake()
        thread = self._thread
        if thread is None:
            self._release()
        elif thread is not threading.current_thread():
            thread.join(JOIN_S)

    def wake(self) -> None:
        """End whatever the server's thread waits for. Callable from any thread."""
        with suppress(OSError):  # full: it is awake anyway; closed: it has stopped
            self._wake_in.send(b"\0")

    def _run(self) -> None:
        try:
            while not self._stopping:
                events = self._poller.wait(self._strangers.patience())
                self.alone = len(events) == 1
                for what, mask in events:
                    if what is _LISTENER:
                        self._accept()
                    elif what is _WAKE:
                        self._woken()
                    else:
                        self._serve(what, mask)
                while self._blocked:
                    self._watch(self._blocked.popleft())
                if self._strangers:
                    self._drop_late()
                if self._on_round is not None:
                    self._on_round()
        finally:
            for connection in list(self._connections):
                self._drop(connection)
            self._release()

    def _release(self) -> None:
        if self._door is not None:
            self._door.close()
        self._poller.close()
        self._wake_in.close()
        self._wake_out.close()

    def _woken(self) -> None:
        with suppress(BlockingIOError):
            self._wake_out.recv(4096)

    def _accept(self) -> None:
        assert self._door is not None
        sock = self._door.accept()
        if sock is None:
            return
        if len(self._connections) - len(self._strangers) >= MAX_CONNECTIONS:
            sock.close()
            return
        greets = self._identity is not None
        connection = Connection(
            sock,
            limits=self._limits,
            max_queued=self._max_queued,
            on_blocked=self._note_blocked,
            greeting=greets,
        )
        if greets and (displaced := self._strangers.enter(connection)) is not None:
            self.turned.shed += 1
            self._drop(displaced)
        self._connections.add(connection)
        self._watched.clear()
        self._poller.register(sock, READ, connection)

    def _drop_late(self) -> None:
        for connection in self._strangers.late():
            self.turned.late += 1
            self._drop(connection)

    def _note_blocked(self, connection: Connection) -> None:
        """Called by whichever thread sends."""
        self._blocked.append(connection)
        if threading.current_thread() is not self._thread:
            self.wake()

    def _watch(self, connection: Connection) -> None:
        if not connection.closed:
            self._poller.modify(connection.sock, READ | (WRITE if connection.blocked else 0))

    def _serve(self, connection: Connection, mask: int) -> None:
        try:
            if mask & WRITE and connection.flush():
                self._watch(connection)
            if mask & READ:
                count = self._on_bytes(connection, self._staging) if connection.resting else 0
                if count == USED:
                    return
                for frame in connection.take(self._staging.data[:count]) if count else connection.read():
                    self._deliver(connection, frame)
                connection.resting = self._takes_bytes and connection.peer is not None and connection.at_rest
        except ProtocolError as error:
            self._refuse(connection, error)
        except Tampered as error:
            self.turned.tampered += 1
            log.warning("%s: the link to %s ends: %s", self._name, connection.peer.id, error)
            self._drop(connection)
        except (OSError, MoemeshError):  # gone, or it does not read what it asked for
            self._drop(connection)
        except Exception:
            # A bug. One connection's bytes must not end the thread that serves all.
            log.exception("%s: a connection failed and is closed", self._name)
            self._drop(connection)

    def _deliver(self, connection: Connection, frame: Frame) -> None:
        kind = frame.kind
        if kind in _GREETING:
            self._greet(connection, frame)
        elif kind is _PING and not self._is_stranger(connection):
            connection.send(Kind.PONG, frame.header)
        elif self._identity is not None and connection.peer is None:
            raise ProtocolError(f"a {kind.name} frame before HELLO")
        else:
            try:
                self._on_frame(connection, frame)
            except Exception as error:
                if not isinstance(error, MoemeshError):
                    log.exception("%s: a %s frame failed; its sender gets an ERROR", self._name, kind.name)
                connection.send(Kind.ERROR, error_header(error))

    def _greet(self, connection: Connection, frame: Frame) -> None:
        if connection.peer is not None:
            raise ProtocolError("a second greeting on one connection")
        reception = self._receptions.get(connection)
        if reception is None:
            mine = self._identity or Identity("server", self._name)
            reception = Reception(mine, must_seal(mine, connection.sock))
            self._receptions[connection] = reception
        try:
            kind, header = reception.take(frame)
        finally:
            if reception.session is not None:
                connection.admit(reception.session)
        if reception.peer is not None:
            connection.peer = reception.peer
            connection.admit(protocol=reception.protocol)
            del self._receptions[connection]
            self._strangers.leave(connection)
        connection.send(kind, header)

    def _is_stranger(self, connection: Connection) -> bool:
        return self._identity is not None and self._identity.key != b"" and connection.peer is None

    def _refuse(self, connection: Connection, error: ProtocolError) -> None:
        self.turned.refused += connection.peer is None
        log.warning("%s: refused a peer: %s", self._name, error)
        with suppress(MoemeshError):  # it has gone: nobody to tell
            connection.send(Kind.REFUSED, error_header(error))
        self._drop(connection)

    def _drop(self, connection: Connection) -> None:
        if connection not in self._connections:
            return
        self._connections.discard(connection)
        self._receptions.pop(connection, None)
        self._strangers.leave(connection)
        stranger = self._identity is not None and connection.peer is None
        self._watched.clear()
        self._poller.unregister(connection.sock)
        connection.close()
        if self._on_close is not None and not stranger:
            self._on_close(connection)


def _leave(connection: Connection, staging: Array) -> int:
    return 0
