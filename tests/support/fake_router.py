"""A router's front door on real sockets with a scripted engine behind it, for tests of the gateway."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cluster.dispatch.connection import Connection
from cluster.dispatch.frames import Frame
from cluster.dispatch.handshake import Identity
from cluster.dispatch.kinds import Kind
from cluster.dispatch.requests import parse_request
from cluster.dispatch.server import FrameServer
from cluster.errors import MoemeshError, Overloaded
from cluster.gateway.routers import PROBE_NUMBER
from cluster.types import EngineRequest, RequestId

WIDTH = 4
"""Of an embedding: the first ids of the prompt."""

Script = Callable[[list[int], Mapping[str, Any]], list[int]]


def echo(prompt: list[int], sampling: Mapping[str, Any]) -> list[int]:
    """The prompt again and again, up to max_tokens; a sampled request starts at its seed."""
    start = sampling["seed"] % len(prompt) if sampling["temperature"] > 0 else 0
    return [prompt[(start + i) % len(prompt)] for i in range(sampling["max_tokens"])]


def logprob(place: int) -> float:
    """Of the token at `place` of an answer, or of a scored prompt; exact in float32."""
    return -(place % 8 + 1) / 8


@dataclass
class Submitted:
    connection: Connection
    number: int
    request_id: str
    kind: str
    sampling: Mapping[str, Any]
    prompt: list[int]
    answer: list[int]
    asked: EngineRequest
    sent: int = 0


@dataclass
class Counts:
    """What a test asserts on."""

    submitted: list[Submitted] = field(default_factory=list)
    aborted: list[int] = field(default_factory=list)
    refused: int = 0
    frames: int = 0
    probes: int = 0


class FakeRouter:
    """Every step gives each running request its next token, in one frame a connection, as the real one does.

    paused: steps happen only when the test calls `step`. refuse: answers every request with this error.
    most: requests that it holds; further ones are refused as Overloaded.
    """

    def __init__(
        self,
        script: Script = echo,
        *,
        paused: bool = False,
        refuse: MoemeshError | None = None,
        most: int | None = None,
        port: int = 0,
        library: str = "",
    ) -> None:
        self.counts = Counts()
        self.running: dict[tuple[Connection, int], Submitted] = {}
        self._script = script
        self._paused = paused
        self._refuse = refuse
        self._most = most
        self._lock = threading.Lock()
        self._work = threading.Event()
        self._stopping = False
        self._server = FrameServer(
            port=port,
            on_frame=self._on_frame,
            on_close=self._on_close,
            identity=Identity("router", "fake", 1, library),
            name="fake-router",
        )
        self._thread = threading.Thread(target=self._run, name="fake-engine", daemon=True)

    def __enter__(self) -> FakeRouter:
        self.address = self._server.start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        """Die with every connection; idempotent."""
        self._stopping = True
        self._work.set()
        self._server.shutdown()
        self._thread.join()

    def accept(self) -> None:
        """Refuse nothing any more."""
        self._refuse = self._most = None

    @property
    def connections(self) -> int:
        return self._server.connections

    def resume(self) -> None:
        self._paused = False
        self._work.set()

    def step(self) -> None:
        """One token for each running request."""
        with self._lock:
            outgoing: dict[Connection, tuple[list[list[Any]], list[np.ndarray]]] = {}
            for key, request in list(self.running.items()):
                entries, scores = outgoing.setdefault(request.connection, ([], []))
                if self._advance(request, entries, scores):
                    del self.running[key]
        for connection, (entries, scores) in outgoing.items():
            self.counts.frames += 1
            connection.send(Kind.EVENTS, {"e": entries}, *scores)

    def fail_running(self, error: MoemeshError) -> None:
        with self._lock:
            failed, self.running = self.running, {}
        for (connection, number), request in failed.items():
            event = [number, "x", type(error).__name__, str(error), request.sent]
            connection.send(Kind.EVENTS, {"e": [event]})

    def _advance(self, request: Submitted, entries: list[list[Any]], scores: list[np.ndarray]) -> bool:
        """Whether that was its last event."""
        if request.kind == "score":
            values = [logprob(place) for place in range(len(request.prompt) - 1)]
            scores.append(np.asarray(values, "<f4"))
            entries.append([request.number, "s", len(values), 0])
            return True
        if request.kind == "embed":
            scores.append(np.asarray(request.prompt[:WIDTH], "<f4"))
            entries.append([request.number, "e", WIDTH, len(request.prompt)])
            return True
        if request.sent < len(request.answer):
            token = request.answer[request.sent]
            entries.append([request.number, "t", token, logprob(request.sent)])
            if count := request.sampling["top_logprobs"]:
                entries[-1].append([v for i in range(count) for v in (i, logprob(i))])
            request.sent += 1
        if request.sent < len(request.answer):
            return False
        reason = "length" if request.sent == request.sampling["max_tokens"] else "stop"
        entries.append([request.number, "f", reason, len(request.prompt), request.sent])
        return True

    def _on_frame(self, connection: Connection, frame: Frame) -> None:
        number = frame.header["n"]
        if frame.kind is Kind.ABORT:
            with self._lock:
                self.counts.aborted.append(number)
                self.running.pop((connection, number), None)
            return
        assert frame.kind is Kind.SUBMIT
        self.counts.probes += number == PROBE_NUMBER
        if number == PROBE_NUMBER and self._refuse is None:
            # Answered whatever the script is, and not counted: tests are about their own requests.
            connection.send(Kind.EVENTS, {"e": [[number, "t", 0, 0.0], [number, "f", "length", 1, 1]]})
            return
        full = self._most is not None and len(self.running) >= self._most
        if (refuse := Overloaded("full") if full else self._refuse) is not None:
            self.counts.refused += 1
            event = [number, "x", type(refuse).__name__, str(refuse), 0]
            connection.send(Kind.EVENTS, {"e": [event]})
            return
        self._submit(connection, number, frame)

    def _submit(self, connection: Connection, number: int, frame: Frame) -> None:
        header = frame.header
        asked = parse_request(RequestId(header["id"]), header, frame.payload)
        prompt = list(asked.prompt_ids)
        sampling = dataclasses.asdict(asked.sampling)
        sampling["stop_token_ids"] = list(asked.sampling.stop_token_ids)
        answer = self._script(prompt, sampling) if asked.kind == "generate" else []
        sent = len(asked.emitted)
        assert list(asked.emitted) == answer[:sent], "what another router has generated"
        request = Submitted(
            connection, number, header["id"], asked.kind, sampling, prompt, answer, asked, sent
        )
        with self._lock:
            self.counts.submitted.append(request)
            self.running[connection, number] = request
        self._work.set()

    def _on_close(self, connection: Connection) -> None:
        with self._lock:
            for key in [key for key in self.running if key[0] is connection]:
                del self.running[key]

    def _run(self) -> None:
        while not self._stopping:
            self._work.wait()
            if self._paused or not self.running:
                self._work.clear()
                # A request that arrived between the look and the clear must not sleep.
                if self._paused or not self.running:
                    continue
            try:
                self.step()
            except MoemeshError:
                continue  # a connection is gone; _on_close forgets its requests
