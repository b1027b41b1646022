"""What the gateway itself costs, in front of a scripted router: time, CPU and memory."""

from __future__ import annotations

import time

from cluster.cli.gatewaybench.arrivals import POISSON, Arrival, Size, drawn
from cluster.cli.gatewaybench.client import Caller, calling, running
from cluster.cli.gatewaybench.figures import Outcome, at_percentile, count
from cluster.cli.gatewaybench.laboratory import Laboratory, bare_server, busy_client, laboratory
from cluster.cli.gatewaybench.probes import probe
from cluster.cli.report import Result, Target, result
from cluster.errors import MoemeshError

STEP_S = 0.02
STREAMS = 32
SIZE = Size(prompt=64, new=64)
RAMP_S = 2.0
PROBES = 15.0
"""Requests a second whose first token is timed."""

ROOM = 4 * STREAMS
"""Nobody waits for a place at the router: the gateway's way is measured, not its line."""

IDLE_STREAMS = 1000
IDLE_TOKENS = 64
WARM_STREAMS = 50

FIRST_TOKEN = Target(must=3, at_most=True)
CPU_PER_TOKEN = Target(must=150, at_most=True)
IDLE_MEMORY = Target(must=100, at_most=True)


def measure_overhead(seconds: float) -> list[Result]:
    """CPU a token of STREAMS streams in the mean, at 50 tokens a second each, which another process reads:
    its work must not count as the gateway's. Then first tokens of short requests beside them, and of the same
    requests at a service that only answers, beside nothing: no gateway over gRPC comes below that here."""
    rate = STREAMS / (SIZE.new * STEP_S)
    with (
        laboratory(STEP_S, window=ROOM) as lab,
        busy_client(lab.address, rate, RAMP_S + 2 * seconds + RAMP_S, SIZE) as client,
    ):
        client.tell()
        time.sleep(RAMP_S)  # until as many streams run as are meant to
        cpu_us = _cpu_per_token(lab, seconds)
        outcome = probe(lab.address, _probes(seconds))
        seen, others = lab.router.ask(), client.answer()
    overheads = _overheads(outcome, seen["stamps"])
    lost = len(outcome.fates) - len(overheads) + others["lost"]
    return [
        at_percentile("gateway.overhead.first_token_p50", overheads, 50, "ms", FIRST_TOKEN),
        at_percentile("gateway.overhead.first_token_p99", overheads, 99, "ms"),
        at_percentile("gateway.overhead.bare_grpc_p50", _bare(seconds), 50, "ms"),
        result("gateway.cpu_per_token", [cpu_us], "µs", CPU_PER_TOKEN),
        count("gateway.overhead.lost", lost, Target(0, at_most=True)),
    ]


def _cpu_per_token(lab: Laboratory, seconds: float) -> float:
    """µs, the admission of the streams that begin in this time included."""
    cpu_s, tokens = lab.gateway.cpu_s, _tokens(lab)
    time.sleep(seconds)
    return 1e6 * (lab.gateway.cpu_s - cpu_s) / (_tokens(lab) - tokens)


def _bare(seconds: float) -> list[float]:
    """ms to the second message, as the probes have it."""
    with bare_server() as address:
        outcome = probe(address, _probes(seconds))
    return [1e3 * one.first_token for one in outcome.fates if one.tokens_at]


def _probes(seconds: float) -> list[Arrival]:
    return drawn(POISSON, PROBES, seconds, Size(SIZE.prompt, 1))


def _tokens(lab: Laboratory) -> int:
    """That the router has sent so far."""
    return int(lab.router.ask()["tokens"])


def _overheads(outcome: Outcome, seen: dict[str, list[float]]) -> list[float]:
    """ms: the time to the first token as the client saw it, less the same as the router saw it."""
    return [
        1e3 * (one.first_token - (seen[one.request_id][1] - seen[one.request_id][0]))
        for one in outcome.fates
        if one.tokens_at
    ]


def measure_idle_streams() -> list[Result]:
    """Streams that were accepted and get no token."""
    with laboratory(0.0, window=2 * IDLE_STREAMS) as lab:
        used, seconds = running(_open_streams(lab))
    name = f"gateway.idle_streams{IDLE_STREAMS}"
    return [
        result(f"{name}.memory", [used / 1e6], "MB", IDLE_MEMORY),
        result(f"{name}.opening", [1e3 * seconds / IDLE_STREAMS], "ms/stream"),
    ]


async def _open_streams(lab: Laboratory) -> tuple[int, float]:
    """Bytes by which the gateway grew, seconds until all were accepted."""
    async with calling(lab.address) as caller:
        await _hold(caller, lab, WARM_STREAMS)
        before = lab.gateway.resident
        start = time.monotonic()
        return await _hold(caller, lab, IDLE_STREAMS) - before, time.monotonic() - start


async def _hold(caller: Caller, lab: Laboratory, streams: int) -> int:
    """The gateway's resident bytes while so many are open; they are cancelled then."""
    calls = [caller.open(number, Size(prompt=64, new=IDLE_TOKENS)) for number in range(streams)]
    try:
        for call in calls:
            if not (await call.read()).HasField("start"):
                raise MoemeshError("the gateway did not accept an idle stream")
        return lab.gateway.resident
    finally:
        for call in calls:
            call.cancel()
