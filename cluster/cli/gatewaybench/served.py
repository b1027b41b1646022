"""What a whole cluster behind its gateway sustains, and what becomes of requests beyond that."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cluster.cli.gatewaybench.arrivals import POISSON, Arrival, Size, drawn
from cluster.cli.gatewaybench.client import Caller, calling, offer, running, saturate
from cluster.cli.gatewaybench.figures import (
    DONE,
    LOST,
    REFUSED,
    Outcome,
    Slo,
    count,
    rate,
    refusal,
    results_of,
)
from cluster.cli.report import Result, Target, percentile, result
from cluster.config import GatewayConfig
from cluster.router.engine import Engine
from cluster.types import EngineRequest, RequestId

Progress = Callable[[str], None]

REQUEST = Size(prompt=16, new=16)
SCORED = Size(prompt=16, new=0)
SCORE_RATE = 200.0
MOST_STREAMS = GatewayConfig.window

LEAST_S = 6.0
"""For which a cluster is kept busy to learn what it gets through."""

BELOW, BEYOND = 0.8, 2.0
"""Loads, as parts of what the cluster gets through when it is never without work."""

SCORE = Target(must=SCORE_RATE)
P99_RATIO = Target(must=1.5, at_most=True, reference="0.8 load")
REFUSAL = Target(must=20, at_most=True)
NOTHING_LOST = Target(must=0, at_most=True)


@dataclass(frozen=True)
class Overload:
    """below, beyond: what became of requests at BELOW and BEYOND times `capacity` requests a second."""

    capacity: float
    below: Outcome
    beyond: Outcome


def measure_load(address: str, arrivals: Sequence[Arrival], slo: Slo) -> tuple[list[Result], Outcome]:
    """One load, after a short warm-up of the first sizes."""

    async def run() -> Outcome:
        async with calling(address) as caller:
            await _warm_up(caller, arrivals[0].size)
            return await offer(caller.generate, arrivals)

    outcome = running(run())
    name = "gateway.load"
    return [*results_of(name, outcome, slo), *refusal(name, outcome, REFUSAL)], outcome


def measure_score(address: str, seconds: float) -> list[Result]:
    """Score calls of 16 tokens, SCORE_RATE a second; what it may cost more than the engine is beside it."""

    async def run() -> Outcome:
        async with calling(address) as caller:
            await saturate(caller.score, SCORED, MOST_STREAMS, 1.0)
            return await offer(caller.score, drawn(POISSON, SCORE_RATE, seconds, SCORED))

    outcome = running(run())
    span = max((one.at + one.end for one in outcome.fates), default=0.0) - min(
        one.at for one in outcome.fates
    )
    times = [1e3 * one.end for one in outcome.of(DONE)]
    name = "gateway.score"
    return [
        rate(f"{name}.rate", len(times), span, Target(must=0.95 * SCORE_RATE, reference="200 offered")),
        result(f"{name}.p50", times, "ms"),
        result(f"{name}.p99", [percentile(times, 99)], "ms"),
        count(f"{name}.refused", len(outcome.of(REFUSED))),
        count(f"{name}.lost", len(outcome.of(LOST)), NOTHING_LOST),
    ]


def score_alone(engine: Engine, seconds: float) -> list[Result]:
    """The same calls on an engine in this process, which is never without work: the bound of the compute."""
    prompt = tuple(range(1, SCORED.prompt + 1))
    start, done, number = time.perf_counter(), 0, 0
    while (spent := time.perf_counter() - start) < seconds:
        while number < done + MOST_STREAMS:
            engine.submit(EngineRequest(RequestId(str(number)), prompt, kind="score"))
            number += 1
        done += len(engine.step())
    while not engine.idle:
        engine.step()
    return [rate("gateway.score.engine_alone", done, spent)]


def measure_overload(address: str, seconds: float, slo: Slo, say: Progress) -> tuple[list[Result], Overload]:
    """Half as long below what the cluster gets through, then `seconds` beyond it."""
    overload = running(_overload(address, seconds, say))
    name = "gateway.overload"
    below, beyond = overload.below, overload.beyond
    return [
        rate(f"{name}.capacity", overload.capacity, 1.0),
        *results_of(f"{name}.below", below, slo),
        *results_of(f"{name}.beyond", beyond, slo),
        *_ratios(name, below, beyond),
        *refusal(name, beyond, REFUSAL),
        count(f"{name}.lost", len(below.of(LOST)) + len(beyond.of(LOST)), NOTHING_LOST),
    ], overload


async def _overload(address: str, seconds: float, say: Progress) -> Overload:
    async with calling(address) as caller:
        say("what the cluster gets through")
        await _warm_up(caller, REQUEST)
        capacity = await saturate(caller.generate, REQUEST, MOST_STREAMS, max(LEAST_S, seconds / 8))
        say(f"{BELOW:g} of {capacity:.0f} requests a second")
        below = await offer(caller.generate, drawn(POISSON, BELOW * capacity, seconds / 2, REQUEST))
        say(f"{BEYOND:g} times {capacity:.0f} requests a second")
        beyond = await offer(caller.generate, drawn(POISSON, BEYOND * capacity, seconds, REQUEST))
    return Overload(capacity, below, beyond)


def _ratios(name: str, below: Outcome, beyond: Outcome) -> list[Result]:
    """Of accepted requests, what overload does to the slowest hundredth."""
    pairs = {
        "e2e": (below.end_to_end(), beyond.end_to_end()),
        "ttft": (below.first_tokens(), beyond.first_tokens()),
    }
    return [
        result(
            f"{name}.{kind}_p99_ratio",
            [percentile(much, 99) / percentile(little, 99)],
            "ratio",
            P99_RATIO if kind == "e2e" else Target(reference="0.8 load"),
        )
        for kind, (little, much) in pairs.items()
        if little and much
    ]


async def _warm_up(caller: Caller, size: Size) -> None:
    await saturate(caller.generate, size, MOST_STREAMS, 1.0)
