"""A router's front door with a clock in place of an engine: what is measured around it is the gateway's."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass

from cluster.dispatch.connection import Connection
from cluster.dispatch.frames import Frame
from cluster.dispatch.handshake import Identity
from cluster.dispatch.kinds import Kind
from cluster.dispatch.requests import Entry, parse_request
from cluster.dispatch.server import FrameServer
from cluster.errors import MoemeshError
from cluster.gateway.routers import PROBE_NUMBER
from cluster.types import EngineRequest, RequestId

TOKEN = 1000
"""Of the bundled model, one that has a text: a word."""


@dataclass(slots=True)
class Stamp:
    """time.monotonic seconds, which all processes of a machine share. first: 0 before the first token."""

    received: float
    first: float = 0.0


@dataclass(slots=True)
class _Running:
    asked: EngineRequest
    sent: int = 0


class ScriptedRouter:
    """Gives every running request its next token every `step_s` seconds, all in one frame, as a router does.

    step_s 0: never gives a token, but to the gateway's own probes. `stamps`: by request id; `tokens`: sent
    so far.
    """

    def __init__(self, step_s: float, library: str) -> None:
        self.stamps: dict[str, Stamp] = {}
        self.tokens = 0
        self._step_s = step_s
        self._running: dict[tuple[Connection, int], _Running] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._server = FrameServer(
            on_frame=self._on_frame,
            on_close=self._on_close,
            identity=Identity("router", "scripted", 1, library),
            name="scripted-router",
        )
        self._thread = threading.Thread(target=self._run, name="scripted-engine", daemon=True)

    def start(self) -> str:
        address = self._server.start()
        self._thread.start()
        return address

    def shutdown(self) -> None:
        self._stopping.set()
        self._thread.join()
        self._server.shutdown()

    def _run(self) -> None:
        if not self._step_s:
            return
        due = time.monotonic()
        while not self._stopping.is_set():
            due = max(due + self._step_s, time.monotonic())
            self._stopping.wait(due - time.monotonic())
            self._step()

    def _step(self) -> None:
        outgoing: dict[Connection, list[Entry]] = {}
        with self._lock:
            now = time.monotonic()
            for (connection, number), request in list(self._running.items()):
                entries = outgoing.setdefault(connection, [])
                if not request.sent:
                    self.stamps[request.asked.request_id].first = now
                request.sent += 1
                self.tokens += 1
                entries.append([number, "t", TOKEN, -1.0])
                if request.sent == request.asked.sampling.max_tokens:
                    entries.append([number, "f", "length", len(request.asked.prompt_ids), request.sent])
                    del self._running[connection, number]
        for connection, entries in outgoing.items():
            _tell(connection, entries)

    def _on_frame(self, connection: Connection, frame: Frame) -> None:
        header = frame.header
        number = int(header["n"])
        if frame.kind is Kind.ABORT:
            with self._lock:
                self._running.pop((connection, number), None)
        elif number == PROBE_NUMBER:
            _tell(connection, [[number, "t", TOKEN, -1.0], [number, "f", "length", 1, 1]])
        else:
            asked = parse_request(RequestId(str(header["id"])), header, frame.payload)
            with self._lock:
                self.stamps[asked.request_id] = Stamp(time.monotonic())
                self._running[connection, number] = _Running(asked)

    def _on_close(self, connection: Connection) -> None:
        with self._lock:
            for key in [key for key in self._running if key[0] is connection]:
                del self._running[key]


def _tell(connection: Connection, entries: list[Entry]) -> None:
    try:
        connection.send(Kind.EVENTS, {"e": entries})
    except MoemeshError:
        return  # the gateway has gone: _on_close forgets its requests
