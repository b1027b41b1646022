"""Streams through a gateway over two real routers, of which one is frozen and the other is killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from cluster.cli.bench_routers import gateway_of
from cluster.config import EngineConfig
from cluster.experiments.live.cluster import LiveNode, live_cluster
from cluster.gateway.service import GatewayService
from cluster.library.bundled import open_model
from protos import generation_pb2 as pb
from protos import generation_pb2_grpc
from support.gateways import generation_stub, request, wait_until

TEXT = "In the beginning God created the heaven and"
LONG: dict[str, Any] = {"max_tokens": 100, "ignore_eos": True}
WARM: dict[str, Any] = {**LONG, "temperature": 0.9, "seed": 5}
COLOURS = pb.Grammar(regex=r"(red|green|blue)(, (red|green|blue)){15,30}\.")
ASKED: dict[str, dict[str, Any]] = {
    "greedy": LONG,
    "listed": {**LONG, "top_logprobs": 3},
    "filtered": {**WARM, "top_k": 40, "top_p": 0.95, "min_p": 0.01},
    "penalised": {**WARM, "repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": 0.5},
    "samples": {**WARM, "n": 3},
    "grammar": {"max_tokens": 100, "temperature": 1.0, "seed": 9, "grammar": COLOURS},
    "stop": {**LONG, "stop": ["never said", "nor this"]},
}
Answer = dict[int, list[Any]]


@pytest.fixture
def served() -> Iterator[tuple[GatewayService, list[int]]]:
    """The gateway, and the routers' process ids."""
    with (
        live_cluster(open_model(), [LiveNode()], [EngineConfig()] * 2) as live,
        gateway_of(live) as gateway,
    ):
        yield gateway, [live.processes[f"router-{number}"].pid for number in range(2)]


def ask(name: str) -> pb.GenerateRequest:
    return request(TEXT, **ASKED[name])


def answer(stub: generation_pb2_grpc.GenerationStub, asked: pb.GenerateRequest) -> Answer:
    """Of each sample its text, ids, logprobs, alternatives, and how it ended."""
    found: Answer = {}
    for part in stub.Generate(asked, timeout=60):
        one = found.setdefault(part.index, ["", [], [], [], None])
        one[0] += part.text
        one[1] += part.token_ids
        one[2] += part.logprobs
        one[3] += [each.SerializeToString() for each in part.alternatives]
        if part.HasField("finish"):
            one[4] = (part.finish.reason, part.finish.usage.completion_tokens)
    return found


def resumed(stub: generation_pb2_grpc.GenerationStub, name: str, whole: Answer) -> Answer:
    """As `whole`, of which a client says that it has the first half of the ids."""
    _, ids, logprobs, listed, _ = whole[0]
    had = len(ids) // 2
    known = request(TEXT, resume_from=had, resumed_ids=ids[:had], **ASKED[name])
    found = answer(stub, known)[0]
    return {
        0: [whole[0][0], ids[:had] + found[1], logprobs[:had] + found[2], listed[:had] + found[3], found[4]]
    }


def test_the_same_tokens_after_a_freeze_and_a_kill(served: tuple[GatewayService, list[int]]) -> None:
    gateway, pids = served
    with generation_stub(gateway) as stub, ThreadPoolExecutor(len(ASKED)) as threads:
        expected = dict(zip(ASKED, threads.map(lambda name: answer(stub, ask(name)), ASKED), strict=True))
        for name in ASKED.keys() - {"samples"}:
            assert resumed(stub, name, expected[name]) == expected[name]
        scored = stub.Score(pb.ScoreRequest(text=TEXT * 4)).logprobs
        for pid, what in ((pids[0], signal.SIGSTOP), (pids[1], signal.SIGKILL)):
            before = gateway.stats()["replayed"]
            begun = stub.Generate(request(TEXT, **LONG), timeout=60)
            for _ in range(2):
                next(begun)
            answers = {name: threads.submit(answer, stub, ask(name)) for name in ASKED}
            wait_until(lambda: gateway.stats()["outstanding"] == 1 + len(ASKED), "all requests")
            os.kill(pid, what)
            score = stub.Score(pb.ScoreRequest(text=TEXT * 4), timeout=60)
            assert score.logprobs == scored
            assert {name: one.result() for name, one in answers.items()} == expected
            assert sum(len(part.token_ids) for part in begun) > 0
            assert gateway.stats()["replayed"] > before
            if what == signal.SIGSTOP:
                os.kill(pid, signal.SIGCONT)
                wait_until(lambda: gateway.stats()["routers"] == 2, "the router that went on")
        wait_until(lambda: gateway.stats()["outstanding"] == 0, "the gateway to be done")
