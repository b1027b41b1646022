"""The router's front door on real sockets, in front of a real engine: every request taken is answered."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from cluster.config import EngineConfig
from cluster.dispatch.aio import FrameStream
from cluster.dispatch.connection import Connection
from cluster.dispatch.handshake import Identity
from cluster.dispatch.kinds import Kind
from cluster.dispatch.transport import ExpertCall, ExpertRows
from cluster.errors import Overloaded, Unavailable
from cluster.library.reader import Library
from cluster.router.engine import Engine
from cluster.router.service import RouterService
from support.checkpoints import case
from support.engines import engine_over, request, run_all, tiny_library
from support.gateways import wait_until

MODEL = "qwen3-tied-gqa"
CONFIG = EngineConfig(kv_bytes=4 << 20, max_running=2, max_waiting=4)
PROMPT = case(MODEL).prompt(9)
TOKENS = 6


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return tiny_library(tmp_path_factory.mktemp("models"), MODEL)


@pytest.fixture(scope="module")
def expected(library: Library) -> list[int]:
    with engine_over(library, CONFIG) as engine:
        return run_all(engine, [request("a", PROMPT, tokens=TOKENS)])["a"].tokens


class Gate:
    """The engine's own transport behind a door that a test opens. closed_by: the thread that closed it."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.open = threading.Event()
        self.open.set()
        self.inside = threading.Event()
        self.closed_by = ""

    def send(self, call: ExpertCall) -> None:
        self._inner.send(call)

    def wait(self, step: int, layer: int, micro_batch: int) -> ExpertRows:
        self.inside.set()
        assert self.open.wait(20)
        rows: ExpertRows = self._inner.wait(step, layer, micro_batch)
        return rows

    def close(self) -> None:
        assert not self.closed_by, "closed twice"
        self.closed_by = threading.current_thread().name


@contextmanager
def running(library: Library, opened: bool = True) -> Iterator[tuple[RouterService, Engine, Gate, str]]:
    with engine_over(library, CONFIG) as engine:
        gate = Gate(engine.experts)
        engine.experts = gate
        service = RouterService(engine, Identity("router", "router-0", 1))
        address = service.start()
        if opened:
            service.open()
        try:
            yield service, engine, gate, address
        finally:
            gate.open.set()
            service.shutdown()


def talk(address: str, conversation: Callable[[FrameStream], Awaitable[Any]]) -> Any:
    async def connected() -> Any:
        async with await FrameStream.open(address, identity=Identity("gateway", "g", 1)) as stream:
            return await asyncio.wait_for(conversation(stream), 30)

    return asyncio.run(connected())


async def submit(
    stream: FrameStream, number: int = 1, kind: str = "generate", prompt: list[int] = PROMPT, **sampling: Any
) -> None:
    fields = {"max_tokens": TOKENS, "ignore_eos": True, **sampling}
    header = {
        "n": number,
        "id": f"request-{number}",
        "kind": kind,
        "prompt": len(prompt),
        "sampling": fields,
    }
    await stream.send(Kind.SUBMIT, header, np.asarray(prompt, "<i4").tobytes())


async def events_until_end(stream: FrameStream, number: int = 1) -> list[list[Any]]:
    """All events up to the one that ends request `number`, which is put last; a score's values are put
    behind its event."""
    found: list[list[Any]] = []
    while not (ends := [event for event in found if event[0] == number and event[1] != "t"]):
        frame = await stream.recv()
        assert frame.kind is Kind.EVENTS, frame
        for event in frame.header["e"]:
            if event[1] == "s":
                event = [*event, np.frombuffer(frame.payload, "<f4")]
            found.append(event)
    return [event for event in found if event is not ends[0]] + ends


async def ask(stream: FrameStream, **fields: Any) -> list[list[Any]]:
    await submit(stream, **fields)
    return await events_until_end(stream, fields.get("number", 1))


def tokens_of(events: list[list[Any]]) -> list[int]:
    return [event[2] for event in events if event[1] == "t"]


def test_it_generates_scores_and_tells_how_it_is(library: Library, expected: list[int]) -> None:
    async def conversation(stream: FrameStream) -> None:
        events = await ask(stream)
        assert tokens_of(events) == expected
        assert events[-1] == [1, "f", "length", len(PROMPT), TOKENS]
        number, kind, count, _, scores = (await ask(stream, number=2, kind="score", max_tokens=0))[-1]
        assert (number, kind, count, len(scores)) == (2, "s", len(PROMPT) - 1, len(PROMPT) - 1)
        await stream.send(Kind.STATUS, {})
        frame = await stream.recv()
        assert (frame.kind, frame.header["ready"], frame.header["running"]) == (Kind.REPLY, True, 0)

    with running(library) as (_, engine, _, address):
        talk(address, conversation)
        assert engine.stats.kv_pages_used == 0


def test_until_it_is_opened_requests_are_unavailable(library: Library) -> None:
    with running(library, opened=False) as (service, _, _, address):
        assert not service.ready
        event = talk(address, ask)[-1]
    assert event[1:3] == ["x", Unavailable.__name__]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"max_tokens": -1}, "max_tokens is -1"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"max_tokens": "many"}, "malformed"),
        ({"seed": 1 << 63, "top_p": 0.0}, "top_p is 0.0"),
        ({"speed": 3}, "malformed"),
        ({"kind": "sing"}, "unknown kind 'sing'"),
        ({"prompt": []}, "prompt is empty"),
        ({"prompt": [10**6]}, "vocabulary"),
        ({"prompt": [1] * 400}, "context"),
    ],
)
def test_what_a_gateway_should_not_have_sent_is_refused(
    library: Library, fields: dict[str, Any], words: str, expected: list[int]
) -> None:
    async def conversation(stream: FrameStream) -> None:
        event = (await ask(stream, **fields))[-1]
        assert event[1:3] == ["x", "InvalidRequest"]
        assert words in event[3]
        assert tokens_of(await ask(stream, number=2)) == expected, "the connection goes on"

    with running(library) as (_, _, _, address):
        talk(address, conversation)


def test_a_full_queue_is_told_as_such(library: Library) -> None:
    """Two run, four wait."""

    async def conversation(stream: FrameStream, gate: Gate) -> list[Any]:
        await submit(stream, 0)
        await asyncio.to_thread(gate.inside.wait, 20)
        for number in range(1, 7):
            await submit(stream, number)
        gate.open.set()
        return (await events_until_end(stream, 6))[-1]

    with running(library) as (_, _, gate, address):
        gate.open.clear()
        event = talk(address, lambda stream: conversation(stream, gate))
    assert event[1:3] == ["x", Overloaded.__name__]


@pytest.mark.parametrize("number", [1, 3], ids=["running", "waiting"])
def test_an_abort_frees_what_the_request_held(library: Library, number: int, expected: list[int]) -> None:
    async def conversation(stream: FrameStream, engine: Engine, gate: Gate) -> None:
        for each in (1, 2, 3):
            await submit(stream, each, max_tokens=100)
        await asyncio.to_thread(gate.inside.wait, 20)
        await stream.send(Kind.ABORT, {"n": number})
        await stream.send(Kind.ABORT, {"n": 99})
        gate.open.set()
        kept = {1, 2, 3} - {number}
        for each in kept:
            await stream.send(Kind.ABORT, {"n": each})
        await asyncio.to_thread(wait_until, lambda: engine.idle, "the engine to be idle")
        assert engine.stats.kv_pages_used == 0
        await submit(stream, 4)
        events = [event for event in await events_until_end(stream, 4) if event[0] == 4]
        assert tokens_of(events) == expected
        await stream.send(Kind.ABORT, {"n": 4})  # it has just ended
        assert tokens_of(await ask(stream, number=5)) == expected

    with running(library) as (_, engine, gate, address):
        gate.open.clear()
        talk(address, lambda stream: conversation(stream, engine, gate))


def test_the_requests_of_a_lost_gateway_are_forgotten(library: Library) -> None:
    async def conversation(stream: FrameStream, gate: Gate) -> None:
        for number in range(4):
            await submit(stream, number, max_tokens=100)
        await asyncio.to_thread(gate.inside.wait, 20)

    with running(library) as (service, engine, gate, address):
        gate.open.clear()
        talk(address, lambda stream: conversation(stream, gate))
        gate.open.set()
        wait_until(lambda: engine.idle, "the engine to be idle")
        assert engine.stats.kv_pages_used == 0
        assert service.ready


def test_a_gateway_that_cannot_be_told_is_cut_off_and_holds_nothing(
    library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens that were not delivered would be a hole in its streams."""
    send = Connection.send

    def full(connection: Connection, kind: Kind, *rest: Any) -> None:
        if kind is Kind.EVENTS:
            raise Overloaded("the peer does not read")
        send(connection, kind, *rest)

    async def conversation(stream: FrameStream) -> None:
        await submit(stream, max_tokens=100)
        with pytest.raises(Unavailable):
            await stream.recv()

    with running(library) as (_, engine, _, address):
        monkeypatch.setattr(Connection, "send", full)
        talk(address, conversation)
        wait_until(lambda: engine.idle, "the engine to be idle")
        assert engine.stats.kv_pages_used == 0


def test_a_bug_in_a_step_ends_its_requests_and_not_the_router(
    library: Library, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def conversation(stream: FrameStream) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(Engine, "_schedule", lambda self: 1 / 0)
            event = (await ask(stream))[-1]
        assert event[1:3] == ["x", "MoemeshError"]
        assert "ZeroDivisionError" not in event[3], "its text stays in the log"
        assert tokens_of(await ask(stream, number=2)) == expected

    with running(library) as (_, engine, _, address):
        talk(address, conversation)
        assert engine.stats.kv_pages_used == 0


def test_a_shutdown_lets_the_step_end_and_its_thread_closes_the_transport(library: Library) -> None:
    async def conversation(stream: FrameStream, service: RouterService, gate: Gate) -> None:
        await submit(stream, max_tokens=100)
        await asyncio.to_thread(gate.inside.wait, 20)
        stopping = asyncio.create_task(asyncio.to_thread(service.shutdown))
        with pytest.raises(Unavailable):
            await stream.recv()
        assert not gate.closed_by, "the step still needs it"
        gate.open.set()
        await stopping
        assert gate.closed_by == "engine"

    with running(library) as (service, _, gate, address):
        gate.open.clear()
        talk(address, lambda stream: conversation(stream, service, gate))
        assert not service.ready


def test_a_router_that_never_started_closes_its_transport(library: Library) -> None:
    with engine_over(library, CONFIG) as engine:
        engine.experts = gate = Gate(engine.experts)
        RouterService(engine, Identity("router", "router-0", 1)).shutdown()
    assert gate.closed_by
