"""Clients that leave: a real engine behind a real gateway stops their work and holds nothing for them."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import grpc
import psutil
import pytest

from cluster.config import EngineConfig
from cluster.dispatch.handshake import Identity
from cluster.dispatch.transport import ExpertCall, ExpertRows
from cluster.gateway.service import GatewayService
from cluster.library.reader import Library
from cluster.router.engine import Engine
from cluster.router.service import RouterService
from protos import generation_pb2 as pb
from protos import generation_pb2_grpc
from support.checkpoints import case
from support.engines import engine_over, tiny_library
from support.gateways import gateway, wait_until
from support.relay import Relay

MODEL = "qwen3-tied-gqa"
CONFIG = EngineConfig(kv_bytes=4 << 20, max_running=8, max_waiting=64)
STORM = 160
WORKERS = 16
LONG = 200
VOCAB = 256
"""Of the tokenizer that the gateway has in these tests; the model knows more tokens."""

PATIENT = {"max_wait_s": 60.0, "wait_share": 99.0}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return tiny_library(tmp_path_factory.mktemp("models"), MODEL)


class Door:
    """The engine's own experts, who answer while it is open."""

    def __init__(self, inner: object) -> None:
        self._inner = inner
        self.open = threading.Event()
        self.open.set()
        self.inside = threading.Event()

    def send(self, call: ExpertCall) -> None:
        self._inner.send(call)  # type: ignore[attr-defined]

    def wait(self, step: int, layer: int, micro_batch: int) -> ExpertRows:
        self.inside.set()
        assert self.open.wait(20)
        rows: ExpertRows = self._inner.wait(step, layer, micro_batch)  # type: ignore[attr-defined]
        return rows

    def close(self) -> None: ...


@dataclass
class Served:
    engine: Engine
    door: Door
    router: RouterService
    gateway: GatewayService

    def is_idle(self) -> None:
        """Nothing is held by anybody."""
        wait_until(lambda: self.gateway.stats()["outstanding"] == 0, "the gateway to hold no request")
        wait_until(lambda: self.engine.idle, "the engine to have nothing to do")
        stats = self.router.stats
        assert (stats.kv_pages_used, stats.running, stats.waiting) == (0, 0, 0)


@pytest.fixture
def served(library: Library) -> Iterator[Served]:
    with engine_over(library, CONFIG) as engine:
        door = Door(engine.experts)
        engine.experts = door
        router = RouterService(engine, Identity("router", "router-0", 1))
        address = router.start()
        router.open()
        try:
            with gateway({"r0": address}, window=CONFIG.max_running, **PATIENT) as front:
                yield Served(engine, door, router, front)
        finally:
            door.open.set()
            router.shutdown()


def ask(number: int, tokens: int) -> pb.GenerateRequest:
    ids = [token % VOCAB for token in case(MODEL).prompt(3 + number % 20)]
    sampling = pb.Sampling(max_tokens=tokens, ignore_eos=True)
    return pb.GenerateRequest(token_ids=pb.TokenIds(ids=ids), sampling=sampling, request_id=f"r{number}")


@contextmanager
def stub_of(address: str) -> Iterator[generation_pb2_grpc.GenerationStub]:
    with grpc.insecure_channel(address) as channel:
        yield generation_pb2_grpc.GenerationStub(channel)


def test_half_of_the_clients_leave_at_random(served: Served) -> None:
    served.is_idle()
    with stub_of(served.gateway.address) as stub:
        list(stub.Generate(ask(0, 1)))
        threads, files = threading.active_count(), psutil.Process().num_fds()
        wrong: list[str] = []

        def client(first: int) -> None:
            draw = random.Random(first)
            for number in range(first, STORM, WORKERS):
                wrong.extend(one_client(stub, number, draw))

        clients = [threading.Thread(target=client, args=(n,)) for n in range(WORKERS)]
        for each in clients:
            each.start()
        for each in clients:
            each.join()
        assert not wrong
        served.is_idle()
        assert threading.active_count() <= threads
        assert psutil.Process().num_fds() <= files
        assert sum(len(part.token_ids) for part in stub.Generate(ask(0, 8))) == 8


def one_client(stub: generation_pb2_grpc.GenerationStub, number: int, draw: random.Random) -> Iterator[str]:
    """Half of them read all; others cancel, let a deadline pass or abort, at once or after some tokens."""
    tokens = draw.randrange(4, 24)
    if draw.random() < 0.5:
        got = sum(len(part.token_ids) for part in stub.Generate(ask(number, tokens)))
        if got != tokens:
            yield f"request {number} got {got} of {tokens} tokens"
        return
    way = draw.choice(("cancel", "deadline", "abort"))
    stream = stub.Generate(ask(number, LONG), timeout=draw.random() * 0.2 if way == "deadline" else 60.0)
    try:
        for _ in range(draw.randrange(6)):
            next(stream)
        if way == "abort":
            stub.Abort(pb.AbortRequest(request_id=f"r{number}"))
        elif way == "cancel":
            stream.cancel()
        list(stream)
    except grpc.RpcError as error:
        if error.code() not in (grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED):
            yield f"request {number}: {error.code().name} {error.details()}"


def cancels(relay: Relay, stream: grpc.Call) -> None:
    stream.cancel()


def disconnects(relay: Relay, stream: grpc.Call) -> None:
    relay.cut()


def runs_out_of_time(relay: Relay, stream: grpc.Call) -> None:
    """By itself: its deadline is near."""


@pytest.mark.parametrize("leave", [cancels, disconnects, runs_out_of_time])
def test_the_step_under_way_is_the_last(served: Served, leave: Callable[[Relay, grpc.Call], None]) -> None:
    """The engine stands in a step while its client leaves, so that what it does afterwards can be counted."""
    timeout = 0.5 if leave is runs_out_of_time else 60.0
    with Relay(served.gateway.address) as relay, stub_of(relay.address) as stub:
        served.is_idle()
        stream = stub.Generate(ask(1, LONG), timeout=timeout)
        next(stream)
        served.door.inside.clear()
        served.door.open.clear()
        assert served.door.inside.wait(20)
        before = served.router.stats.steps
        leave(relay, stream)
        wait_until(lambda: served.gateway.stats()["outstanding"] == 0, "the gateway to notice")
        wait_until(lambda: served.router._inbox, "the router to be told")
        served.door.open.set()
        served.is_idle()
        assert served.router.stats.steps <= before + 1
