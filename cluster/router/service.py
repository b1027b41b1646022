"""The router as a process: a front door for gateways, an engine on a thread of its own."""

from __future__ import annotations

import dataclasses
import logging
import socket
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from cluster.dispatch.connection import Connection
from cluster.dispatch.frames import Frame
from cluster.dispatch.handshake import Identity, error_header
from cluster.dispatch.kinds import Kind
from cluster.dispatch.requests import Entry, pack_event, pack_failure, parse_request
from cluster.dispatch.server import FrameServer
from cluster.dispatch.strangers import Turned
from cluster.errors import MoemeshError, ProtocolError, Unavailable
from cluster.model.grammar import GrammarState
from cluster.router.engine import Engine, EngineStats
from cluster.router.spans import RouterSpans
from cluster.router.tracing import Tracing
from cluster.types import (
    Emitted,
    EngineRequest,
    Event,
    Failed,
    RequestId,
)

log = logging.getLogger(__name__)

JOIN_S = 15.0
"""Longer than a step waits for a silent node, so that a step under way ends by itself."""

Client = tuple[Connection, int]
"""Who asked: a gateway's connection, and the number that it gave the request."""


class RouterService:
    """Lifecycle: start() -> address, ready, shutdown(). Three threads meet here.

    The front door's thread parses requests and puts them into an inbox; the engine's thread owns the engine,
    its sockets to the nodes and the KV pages, and sends the events of a step, one frame a gateway;
    a control thread may call `open`, `stats` and `shutdown`.

    A request that was taken from a gateway is answered to its end, or its connection is closed.
    """

    def __init__(
        self,
        engine: Engine,
        identity: Identity,
        host: str = "127.0.0.1",
        port: int = 0,
        spans: RouterSpans | None = None,
    ) -> None:
        """spans: None traces no request."""
        self._engine = engine
        self._spans = spans
        self._server = FrameServer(
            host,
            port,
            on_frame=self._on_frame,
            on_close=self._on_close,
            on_round=self._wake,
            identity=identity,
            name="router",
        )
        self._tracing = Tracing(engine)
        self._inbox: deque[Callable[[], list[Event]]] = deque()
        self._signal = threading.Event()
        self._stopping = False
        self._open = False
        self._clients: dict[RequestId, Client] = {}
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> str:
        """Listen and step; requests are refused as Unavailable until `open`. Returns the address."""
        address = self._server.start()
        self._thread.start()
        return address

    def open(self) -> None:
        """The experts can be reached: accept requests."""
        self._open = True

    def between_steps(self, action: Callable[[], None]) -> None:
        """Have the engine's thread call `action` when no step is under way. Callable from any thread."""

        def run() -> list[Event]:
            action()
            return []

        self._inbox.append(run)
        self._signal.set()

    @property
    def ready(self) -> bool:
        return self._open and not self._stopping and self._thread.is_alive()

    @property
    def turned(self) -> Turned:
        """What its front door ended."""
        return self._server.turned

    @property
    def stats(self) -> EngineStats:
        return self._engine.stats

    def shutdown(self) -> None:
        """Close the port, let the step under way end, and close the transport; idempotent."""
        self._stopping = True
        self._server.shutdown()
        self._signal.set()
        if self._thread.is_alive():
            self._thread.join(JOIN_S)
        elif self._thread.ident is None:  # never started, so nobody else closes it
            self._engine.experts.close()

    def _on_frame(self, connection: Connection, frame: Frame) -> None:
        if frame.kind is Kind.SUBMIT:
            self._receive(connection, frame)
        elif frame.kind is Kind.ABORT:
            client = (connection, int(frame.header["n"]))
            self._inbox.append(lambda: self._abort(client))
        elif frame.kind is Kind.TRACE:
            self.between_steps(lambda: self._trace(connection, frame))
        elif frame.kind is Kind.STATUS:
            connection.send(Kind.REPLY, {**dataclasses.asdict(self.stats), "ready": self.ready})
        else:
            raise ProtocolError(f"a router does not answer {frame.kind.name} frames")

    def _receive(self, connection: Connection, frame: Frame) -> None:
        number = int(frame.header["n"])
        client = (connection, number)
        try:
            if not self.ready:
                raise Unavailable("the router is not ready yet; try again")
            request = parse_request(request_key(client), frame.header, frame.payload)
            prepared = self._engine.prepare(request)
        except MoemeshError as error:
            connection.send(Kind.EVENTS, {"e": [pack_failure(number, error, 0)]})
            return
        if self._spans is not None:
            self._spans.arrived(request)
        self._inbox.append(lambda: self._submit(client, request, prepared))

    def _trace(self, connection: Connection, frame: Frame) -> None:
        """On the engine's thread."""
        with suppress(MoemeshError):  # whoever asked has gone
            try:
                header, payload = self._tracing.answer(connection, frame.header)
            except MoemeshError as error:
                connection.send(Kind.ERROR, error_header(error))
            else:
                connection.send(Kind.REPLY, header, payload)

    def _on_close(self, connection: Connection) -> None:
        """A gateway is gone, or whoever recorded: nobody would read the answers to its requests."""
        self._inbox.append(lambda: self._forget(connection))
        self.between_steps(lambda: self._tracing.forget(connection))

    def _wake(self) -> None:
        if self._inbox:
            self._signal.set()

    def _submit(self, client: Client, request: EngineRequest, prepared: GrammarState | None) -> list[Event]:
        self._clients[request.request_id] = client
        if self._spans is not None:
            self._spans.submitted(request)
        try:
            return self._engine.submit(request, prepared)
        except MoemeshError as error:
            return [Failed(request.request_id, error, len(request.emitted))]

    def _abort(self, client: Client) -> list[Event]:
        request_id = request_key(client)
        if request_id in self._clients and self._engine.abort(request_id):
            del self._clients[request_id]
        return []

    def _forget(self, connection: Connection) -> list[Event]:
        for client in [c for c in self._clients.values() if c[0] is connection]:
            self._abort(client)
        return []

    def _run(self) -> None:
        try:
            self._loop()
        finally:
            self._engine.experts.close()  # here: the transport belongs to this thread

    def _loop(self) -> None:
        while not self._stopping:
            if self._engine.idle and not self._inbox:
                self._signal.wait()
            self._signal.clear()
            events: list[Event] = []
            while self._inbox:
                events += self._inbox.popleft()()
            if not self._engine.idle:
                if self._spans is not None:
                    self._spans.before_step()
                events += self._step()
            if self._spans is not None:
                self._spans.see(events, self._engine.running, self._clients)
            self._publish(events)

    def _step(self) -> list[Event]:
        try:
            return self._engine.step()
        except Exception:
            # A bug, not an event of the world: end what was in flight with an error, keep the door open.
            log.exception("a step failed; its requests are ended")
            return self._engine.fail_all(MoemeshError("internal error in the router; see its log"))

    def _publish(self, events: list[Event]) -> None:
        """One EVENTS frame for every gateway that any of them concerns."""
        outgoing: dict[Connection, tuple[list[Entry], list[bytes]]] = {}
        for event in events:
            client = self._clients.get(event.request_id)
            if client is None:
                continue
            connection, number = client
            entries, payload = outgoing.setdefault(connection, ([], []))
            entry, parts = pack_event(number, event)
            entries.append(entry)
            payload.extend(parts)
            if not isinstance(event, Emitted):
                del self._clients[event.request_id]
        for connection, (entries, payload) in outgoing.items():
            try:
                connection.send(Kind.EVENTS, {"e": entries}, *payload)
            except MoemeshError as error:
                log.warning(
                    "a gateway cannot be told of %d events, its requests end: %s", len(entries), error
                )
                self._cut(connection)

    def _cut(self, connection: Connection) -> None:
        """Its streams would have a hole now. The server's thread sees the connection end and closes it."""
        self._forget(connection)
        with suppress(OSError):  # it has gone by itself
            connection.sock.shutdown(socket.SHUT_RDWR)


def request_key(client: Client) -> RequestId:
    """Unique within this router, whatever ids the clients of several gateways choose."""
    return RequestId(f"{id(client[0]):x}/{client[1]}")
