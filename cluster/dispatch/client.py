"""A blocking client of a frame server: one question, one answer."""

from __future__ import annotations

import selectors
import socket
import threading
import time
from types import TracebackType

from cluster.dispatch.connection import Buffer, Connection
from cluster.dispatch.frames import DEFAULT_LIMITS, Frame, Header, Limits
from cluster.dispatch.greeting import Greeting, must_seal
from cluster.dispatch.handshake import Identity, error_of, split_address
from cluster.dispatch.kinds import Kind
from cluster.errors import MoemeshError, Unavailable

CONNECT_S = 5.0


class ControlClient:
    """Connects on the first call and again on the call after a failure; calls of several threads take turns.

    With an `identity` it says HELLO first and checks the WELCOME. A call that fails by time-out or a broken
    connection may have been carried out.
    """

    def __init__(
        self, address: str, *, identity: Identity | None = None, limits: Limits = DEFAULT_LIMITS
    ) -> None:
        self.address = address
        self.server: Identity | None = None
        self._identity = identity
        self._limits = limits
        self._lock = threading.Lock()
        self._connection: Connection | None = None

    def call(self, kind: Kind, header: Header, payload: Buffer = b"", timeout_s: float = 5.0) -> Frame:
        """Send one frame and return the next one that comes back, reading while it writes.

        Raises Unavailable if the server cannot be reached or does not answer in `timeout_s`, ProtocolError,
        and whatever error the server answered with.
        """
        with self._lock:
            deadline = time.monotonic() + timeout_s
            try:
                connection = self._connection or self._connect(deadline)
                frame = self._exchange(connection, kind, header, payload, deadline)
            except (OSError, MoemeshError) as error:
                self._drop()
                if isinstance(error, MoemeshError):
                    raise
                raise Unavailable(f"no answer from {self.address}: {error}") from error
        if frame.kind in (Kind.ERROR, Kind.REFUSED):
            raise error_of(frame.header)
        return frame

    def close(self) -> None:
        with self._lock:
            self._drop()

    def __enter__(self) -> ControlClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _connect(self, deadline: float) -> Connection:
        wait = max(0.001, min(CONNECT_S, deadline - time.monotonic()))
        sock = socket.create_connection(split_address(self.address), timeout=wait)
        self._connection = connection = Connection(
            sock, limits=self._limits, greeting=self._identity is not None
        )
        if self._identity is not None:
            greeting = Greeting(self._identity, must_seal(self._identity, sock))
            frame = self._exchange(connection, Kind.HELLO, greeting.hello(), b"", deadline)
            while (proof := greeting.answer(frame)) is not None:
                connection.send(Kind.PROOF, proof)
                if greeting.session is not None:
                    connection.admit(greeting.session)
                frame = self._next(connection, deadline)
            connection.admit(protocol=greeting.protocol)
            self.server = greeting.server
        return connection

    def _exchange(
        self, connection: Connection, kind: Kind, header: Header, payload: Buffer, deadline: float
    ) -> Frame:
        connection.send(kind, header, payload)
        return self._next(connection, deadline)

    def _next(self, connection: Connection, deadline: float) -> Frame:
        with selectors.DefaultSelector() as selector:
            selector.register(connection.sock, selectors.EVENT_READ)
            while True:
                wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if connection.blocked else 0)
                selector.modify(connection.sock, wanted)
                left = deadline - time.monotonic()
                ready = selector.select(max(0.0, left))
                if not ready and left <= 0:
                    raise Unavailable(f"no answer from {self.address} in time")
                for _, mask in ready:
                    if mask & selectors.EVENT_WRITE:
                        connection.flush()
                    if mask & selectors.EVENT_READ:
                        frames = connection.read()
                        if frames:
                            return frames[0]

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
