"""A router's connection to one node: it comes up, breaks and comes back; what it owes is kept meanwhile."""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from functools import partial
from typing import Any

import numpy as np

from cluster.dispatch import tcp
from cluster.dispatch.connection import Connection
from cluster.dispatch.decoder import Sink
from cluster.dispatch.flight import Debt, Part
from cluster.dispatch.frames import Frame, Limits
from cluster.dispatch.greeting import Greeting, must_seal
from cluster.dispatch.handshake import Identity, error_of, split_address
from cluster.dispatch.health import Health
from cluster.dispatch.kinds import Kind
from cluster.dispatch.poller import READ, WRITE, Poller
from cluster.dispatch.transport import Array
from cluster.errors import MoemeshError, Overloaded, ProtocolError, Tampered, Unavailable
from cluster.types import NodeId

log = logging.getLogger(__name__)

RETRY_FIRST_S = 0.02
RETRY_MOST_S = 0.2
GREET_S = 2.0
"""A connection that is not up by then is tried anew: its peer may be frozen, or packets go nowhere."""


class State(Enum):
    DOWN = "down"
    CONNECTING = "connecting"
    GREETING = "greeting"
    READY = "ready"


_RISING = (State.CONNECTING, State.GREETING)


class Link:
    """Driven by the exchange: `due`, `on_event`. Nothing here waits.

    on_change: called when it has become READY and when it is lost. on_tampered: when somebody has changed its
        bytes on their way to us.
    parts: what the node owes us; survives a lost connection. overdue: requests that it has not answered and
        that others have; a lost connection takes them along.
    last_heard: when bytes of replies last arrived; a greeting is no sign that work gets done, nor is a PONG.
    last_byte: when any bytes arrived, a sign of life.
    health: what the exchange thinks of the node; it decides, and keeps it here.
    lost_at: when it was READY last, once it is not any more.
    load: int64 [2], messages waiting and service time in µs, as the node's last reply told; a row of the
        roster's.
    """

    def __init__(
        self,
        node: NodeId,
        address: str | None,
        *,
        identity: Identity,
        poller: Poller,
        limits: Limits,
        sink: Callable[[Link, Kind, Any, int], tuple[memoryview, Part] | None],
        on_frame: Callable[[Link, Frame], None],
        on_change: Callable[[Link], None],
        on_tampered: Callable[[], None],
    ) -> None:
        self.node = node
        self.address = address
        self.state = State.DOWN
        self.ready = False
        self.incarnation = 0
        self.parts: dict[Debt, Part] = {}
        self.overdue: dict[Debt, Part] = {}
        self.last_heard = 0.0
        self.last_byte = 0.0
        self.last_ping = self.lost_at = 0.0
        self.health = Health()
        self.load: Array = np.zeros(2, np.int64)
        self.connection: Connection | None = None
        self.refusal: MoemeshError | None = None
        self.cause = "it was never reached"
        self._retry_at = self._began = 0.0
        self._retry_s = RETRY_FIRST_S
        self._identity = identity
        self._greeting = Greeting(identity)
        self._poller = poller
        self._limits = limits
        self._sink: Sink = partial(sink, self)
        self._on_frame = on_frame
        self._on_change = on_change
        self._on_tampered = on_tampered

    @property
    def at_rest(self) -> bool:
        """Whether it is up, nothing waits to be sent and the next byte begins a frame."""
        return self.ready and self.connection is not None and self.connection.at_rest

    def fileno(self) -> int:
        return -1 if self.connection is None else self.connection.fd

    def due(self, now: float) -> None:
        """Start the next attempt to connect if it is time for one."""
        if self.state in _RISING and now - self._began > GREET_S:
            self.lose("it does not greet")
        if self.state is not State.DOWN or now < self._retry_at or self.address is None:
            return
        self._began = now
        self._retry_at = now + self._retry_s
        self._retry_s = min(2 * self._retry_s, RETRY_MOST_S)
        try:
            host, port = split_address(self.address)
            sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
            self.connection = Connection(
                sock,
                limits=self._limits,
                sink=self._sink,
                on_blocked=self._watch_writes,
                greeting=True,
            )
            code = sock.connect_ex((host, port))
        except (OSError, ProtocolError) as error:
            self.lose(str(error))
            return
        if code not in (0, errno.EINPROGRESS):
            self.lose(errno.errorcode.get(code, str(code)))
            return
        self.state = State.CONNECTING
        self._poller.register(sock, READ | WRITE, self)

    def move(self, address: str | None) -> None:
        """The node's address is another one: the next connection goes there."""
        if address != self.address:
            self.lose(f"it moved from {self.address}")
            self.address = address
            self._retry_at, self._retry_s = 0.0, RETRY_FIRST_S

    def ping(self, now: float) -> None:
        """Ask whether the node is there; the answer, like any byte, is noted in `last_byte`."""
        connection = self.connection
        if connection is None or not self.ready:
            return
        self.last_ping = now
        try:
            connection.send(Kind.PING, [])
        except (Unavailable, Overloaded) as error:  # a peer that reads nothing is as good as gone
            self.lose(str(error))

    def on_event(self, mask: int, now: float) -> None:
        connection = self.connection
        assert connection is not None
        with self._guarded():
            if mask & WRITE and not self._writable(connection):
                return
            if mask & READ:
                self._handle(connection, connection.read(), now)

    def on_bytes(self, data: memoryview, now: float) -> None:
        """Somebody has received `data` from the connection, which was at rest."""
        connection = self.connection
        assert connection is not None
        with self._guarded():
            self._handle(connection, connection.take(data), now)

    def _handle(self, connection: Connection, frames: list[Frame], now: float) -> None:
        if self.ready:
            self.last_byte = now
            if not frames or any(frame.kind is not Kind.PONG for frame in frames):
                self.last_heard = now
        for frame in frames:
            if self.connection is not connection:  # an answer to an earlier frame failed
                return
            if self.ready:
                self._on_frame(self, frame)
            else:
                self._greeted(frame)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except ProtocolError as error:
            self.refuse(error)
        except Tampered as error:
            self._on_tampered()
            log.warning("the link to node %s at %s ends: %s", self.node, self.address, error)
            self.lose(str(error))
        except (OSError, Unavailable) as error:
            self.lose(str(error))

    def refuse(self, error: MoemeshError) -> None:
        """The node and we must not work together; calls that need it fail with `error`."""
        self.refusal = type(error)(f"node {self.node} at {self.address}: {error}")
        self.lose(str(error))

    def lose(self, cause: str) -> None:
        self.cause = cause
        self.state = State.DOWN
        self.ready = False
        connection, self.connection = self.connection, None
        self.overdue.clear()
        if connection is not None:
            self._poller.unregister(connection.sock)
            connection.close()
        self._on_change(self)

    def _writable(self, connection: Connection) -> bool:
        """The socket takes bytes again, or has connected; False if it has not."""
        if self.state is not State.CONNECTING:
            if connection.flush():
                self._poller.modify(connection.sock, READ)
            return True
        code = connection.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self.lose(errno.errorcode.get(code, str(code)))
            return False
        tcp.prepare(connection.sock)
        self.state = State.GREETING
        self._poller.modify(connection.sock, READ)
        self._greeting = Greeting(self._identity, must_seal(self._identity, connection.sock))
        connection.send(Kind.HELLO, self._greeting.hello())
        return True

    def _greeted(self, frame: Frame) -> None:
        assert self.connection is not None
        if frame.kind is Kind.REFUSED:
            self.refuse(error_of(frame.header))
            return
        proof = self._greeting.answer(frame)
        if proof is not None:
            self.connection.send(Kind.PROOF, proof)
            if self._greeting.session is not None:
                self.connection.admit(self._greeting.session)
            return
        self.connection.admit(protocol=self._greeting.protocol)
        assert self._greeting.server is not None, "it has answered"
        self.incarnation = self._greeting.server.incarnation
        self.state = State.READY
        self.ready = True
        self.refusal = None
        self._retry_at, self._retry_s = 0.0, RETRY_FIRST_S
        self._on_change(self)

    def _watch_writes(self, connection: Connection) -> None:
        if self.state is not State.DOWN:
            self._poller.modify(connection.sock, READ | WRITE)
