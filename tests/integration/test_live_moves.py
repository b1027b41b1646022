"""Experts move between the real roles, over sockets and in one process, while a router generates."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.config import ControllerConfig, EngineConfig, NodeConfig, Rebalance
from cluster.controller.service import ControllerService
from cluster.controller.state import Shape
from cluster.dispatch.aio import FrameStream
from cluster.dispatch.client import ControlClient
from cluster.dispatch.handshake import Identity
from cluster.dispatch.kinds import Kind
from cluster.errors import ConfigError, InvalidRequest, OutOfMemoryBudget, Unavailable
from cluster.experiments.live.record import LiveTrace, Until
from cluster.experiments.traces import TraceWriter, read
from cluster.expert.mapping import PAGE
from cluster.fleet import control
from cluster.fleet.ask import Controller
from cluster.fleet.roles import node, process, router
from cluster.fleet.roles.process import Place
from cluster.library.reader import Library
from cluster.router.recorder import GateRecorder
from kernels.layout import pad
from support.checkpoints import case
from support.clusters import wait_until
from support.engines import engine_over, request, run_all, tiny_library
from support.streams import CLIENT, tokens_of

MODEL = "qwen3-tied-gqa"
PROMPTS = [case(MODEL).prompt(5 + 7 * i) for i in range(4)]
TOKENS = 12
CONFIG = EngineConfig(kv_bytes=4 << 20)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return tiny_library(tmp_path_factory.mktemp("models"), MODEL)


@pytest.fixture(scope="module")
def expected(library: Library) -> list[list[int]]:
    with engine_over(library, CONFIG) as engine:
        wanted = [request(str(i), prompt, tokens=TOKENS) for i, prompt in enumerate(PROMPTS)]
        answers = run_all(engine, wanted)
        return [answers[str(i)].tokens for i in range(len(PROMPTS))]


@pytest.fixture(params=[ControllerConfig()], ids=["manual"])
def roles(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[dict[str, Any]]:
    """A controller, three nodes with a limit of half of all experts each, and a router, all ready."""
    monkeypatch.setattr(control, "SYNC_PERIOD_S", 0.05)
    monkeypatch.setattr(process, "log_to_file", lambda *_: None)  # the log is this process's
    spec = library.spec
    size = pad(max(ref.bytes for layer in library.variant("").blobs for ref in layer), PAGE)
    shape = Shape(3, spec.layers, spec.experts, spec.sparse_layers, size)
    memory = size * spec.experts * len(spec.sparse_layers) // 2
    with ExitStack() as stack:
        service = ControllerService(shape, epoch=1, config=request.param)
        address = service.start()
        stack.callback(service.shutdown)
        made: dict[str, Any] = {"controller": stack.enter_context(Controller(address))}
        variant = library.manifest.default_variant
        for name in ("node-0", "node-1", "node-2", "router-0"):
            place = Place(name, address, str(library.path), variant, str(tmp_path))
            if name == "router-0":
                made[name] = router.RouterRole(place, CONFIG)
            else:
                made[name] = node.NodeRole(place, NodeConfig(memory_bytes=memory))
            stack.callback(made[name].shutdown)
        wait_until(lambda: made["router-0"].ready, "a ready router", 60.0)
        yield made


async def generate(address: str, stop: asyncio.Event) -> list[tuple[int, list[int]]]:
    """All prompts at once, again and again until `stop`; (prompt, tokens) of every answer."""
    found: list[tuple[int, list[int]]] = []
    async with await FrameStream.open(address, identity=CLIENT) as stream:
        first = 0
        while not stop.is_set():
            wanted = {first + i: request(f"r{first + i}", prompt, TOKENS) for i, prompt in enumerate(PROMPTS)}
            found += [(number - first, each) for number, each in (await tokens_of(stream, wanted)).items()]
            first += len(PROMPTS)
    return found


async def serve_and(action: Any, address: str) -> tuple[list[tuple[int, list[int]]], Any]:
    """Generate while `action` runs on another thread, from before it to after it."""
    stop = asyncio.Event()
    answers = asyncio.create_task(generate(address, stop))
    await asyncio.sleep(0.5)
    try:
        result = await asyncio.to_thread(action)
    finally:
        stop.set()
    return await answers, result


def test_tokens_stay_the_same_while_experts_move(roles: dict[str, Any], expected: list[list[int]]) -> None:
    controller: Controller = roles["controller"]
    nodes = [roles[f"node-{i}"] for i in range(3)]

    def loads_are_known() -> bool:
        try:
            return bool(controller.rebalance(dry_run=True)["stages"])
        except Unavailable:
            return False

    def move() -> dict[str, Any]:
        wait_until(loads_are_known, "a load that asks for moves", 30.0)
        found = controller.rebalance(dry_run=False, force=True)
        wait_until(lambda: moved(controller), "the last table", 60.0)
        return found

    answers, found = asyncio.run(serve_and(move, roles["router-0"].address))
    assert found["started"]
    assert len(answers) >= 2 * len(PROMPTS)
    for prompt, tokens in answers:
        assert tokens == expected[prompt]
    table = roles["router-0"]._exchange.table
    assert table.version == 1 + len(found["stages"])
    assert any(len(holders) > 1 for layer in table.replicas for holders in layer)
    for one in nodes:
        stats = one.stats()
        assert (stats["not_here"], stats["faults"], stats["undelivered"]) == (0, 0, 0)
        assert stats["resident_bytes"] <= stats["memory_bytes"]
        assert one._shard.experts == set(table.experts_of(one.name))
    assert roles["router-0"]._exchange.counters.resends == 0


EAGER = ControllerConfig(Rebalance.auto, settle_tokens=64, min_gain=0.0, horizon=1e9, cool_down_s=0.2)


@pytest.mark.parametrize("roles", [EAGER], indirect=True, ids=["auto"])
def test_the_controller_moves_experts_by_itself(roles: dict[str, Any], expected: list[list[int]]) -> None:
    controller: Controller = roles["controller"]

    def wait() -> dict[str, Any]:
        wait_until(lambda: controller.status()["version"] > 1, "a table of the controller's own", 60.0)
        return controller.status(detail=True)

    answers, status = asyncio.run(serve_and(wait, roles["router-0"].address))
    assert all(tokens == expected[prompt] for prompt, tokens in answers)
    assert status["rebalance"] == "auto"
    assert " bytes in " in status["decision"]
    assert status["table"]["version"] == status["version"]


def moved(controller: Controller) -> bool:
    status = controller.status()
    return bool(not status["pending"] and status["settled"] and status["active"] == status["version"])


def test_a_node_is_drained_and_comes_back_while_the_tokens_stay(
    roles: dict[str, Any], expected: list[list[int]]
) -> None:
    controller: Controller = roles["controller"]
    nodes = {name: roles[name] for name in ("node-0", "node-1", "node-2")}

    def drain_and_return() -> dict[str, Any]:
        found = controller.drain("node-2")
        wait_until(lambda: moved(controller) and not held("node-2"), "an empty node", 60.0)
        assert set(roles["router-0"]._exchange.table.nodes) == {"node-0", "node-1"}
        with pytest.raises(OutOfMemoryBudget, match=r"node-1 cannot be drained: .* lack \d+ bytes"):
            controller.drain("node-1")
        assert controller.undrain("node-2", for_upgrade=True)["drained"]
        controller.undrain("node-2")
        controller.rebalance(dry_run=False, force=True)
        wait_until(lambda: moved(controller) and held("node-2"), "its experts back", 60.0)
        return found

    def held(name: str) -> int:
        members = {member["id"]: member for member in controller.status()["members"]}
        return int(members[name]["stats"]["held"])

    answers, found = asyncio.run(serve_and(drain_and_return, roles["router-0"].address))
    assert found["started"]
    assert len(answers) >= 2 * len(PROMPTS)
    for prompt, tokens in answers:
        assert tokens == expected[prompt]
    for one in nodes.values():
        stats = one.stats()
        assert (stats["not_here"], stats["faults"], stats["undelivered"]) == (0, 0, 0)
        assert stats["resident_bytes"] <= stats["memory_bytes"]
    assert roles["router-0"]._exchange.counters.resends == 0


def test_without_load_there_is_nothing_to_place_for(roles: dict[str, Any]) -> None:
    with pytest.raises(Unavailable, match="no router has computed anything"):
        roles["controller"].rebalance(dry_run=True)


def test_a_live_trace_is_what_the_gates_chose(
    roles: dict[str, Any], library: Library, expected: list[list[int]], tmp_path: Path
) -> None:
    address = roles["router-0"].address
    path = tmp_path / "live.parquet"

    def record() -> LiveTrace:
        with LiveTrace({"router-0": address}, "test") as live, TraceWriter(path, live.header) as writer:
            with pytest.raises(Unavailable, match="records a trace already"), LiveTrace({"b": address}, ""):
                pass
            for part in live.traces(Until(seconds=60, steps=25)):
                writer.write(part)
        return live

    answers, live = asyncio.run(serve_and(record, address))
    assert all(tokens == expected[prompt] for prompt, tokens in answers)
    trace = read(path)
    assert trace.steps == 25
    assert live.dropped == 0
    assert (np.diff(trace.time) >= 0).all()
    assert trace.header.layers == tuple(library.spec.sparse_layers)
    recorder = GateRecorder(len(trace.header.layers), lambda: 0.0)
    with engine_over(library, CONFIG, probe=recorder) as engine:
        run_all(engine, [request(str(i), prompt, tokens=TOKENS) for i, prompt in enumerate(PROMPTS)])
    alone = np.concatenate([record.ids.transpose(1, 0, 2) for record in recorder.drain()])
    known = {ids.tobytes() for ids in alone}
    assert all(np.ascontiguousarray(ids).tobytes() in known for ids in trace.ids)
    wait_until(lambda: roles["router-0"]._service._engine.probe is None, "the probe's end", 10.0)


def test_a_recording_without_routers_or_end_is_refused(roles: dict[str, Any]) -> None:
    with pytest.raises(Unavailable, match="no router is ready"):
        LiveTrace({}, "")
    with pytest.raises(ConfigError, match="how many seconds, steps or tokens"):
        Until(seconds=0)
    with (
        ControlClient(roles["router-0"].address, identity=Identity("tool", "t")) as client,
        pytest.raises(InvalidRequest, match="no trace was started"),
    ):
        client.call(Kind.TRACE, {"do": "take"})
