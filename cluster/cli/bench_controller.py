"""What clients of a gateway see while there is no controller: a case of `moemesh bench failover`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.cli.bench_routers import FAILED, IDENTICAL, WRONG, streams_through, wrong_tokens
from cluster.cli.report import Result, Target, percentile, result
from cluster.experiments.chaos.schedule import CONTROLLER, Shape
from cluster.experiments.chaos.supervised import supervised, wait_whole
from cluster.experiments.live.failover import Asking, Course, Observed, summed_up

SHAPE = Shape(nodes=3, nodes_away=1, gateways=1)
START_S = BACK_S = 180.0
"""How long the cluster may take to be whole before the run is given up."""

SERVED = Target(must=1, reference="requests that got their first token while there was no controller")
RATE = Target(must=0.95, reference="tokens per second before")
BACK = Target(must=15.0, at_most=True, reference="all members ready, one table active")


@dataclass(frozen=True, eq=False)
class Away:
    """wrong: tokens that were missing, repeated or others. served: requests that got their first token while
    it was away. rate_ratio: tokens per second then over those before. back_s: from its start to a whole
    cluster."""

    observed: Observed
    wrong: int
    served: int
    rate_ratio: float
    back_s: float


def observe_away(asking: Asking, course: Course, away_s: float) -> Away:
    """Serve through a gateway with two routers, `away_s` of it with the controller killed.

    Raises StartFailed, Unavailable.
    """
    with supervised(asking.library, SHAPE) as cluster:
        wait_whole(cluster, START_S)

        def happen() -> tuple[float, float]:
            time.sleep(course.warm_s + course.before_s)
            cluster.kill(CONTROLLER)
            begin = time.monotonic()
            time.sleep(away_s)
            cluster.start(CONTROLLER)
            wait_whole(cluster, BACK_S)
            return begin, time.monotonic()

        (address,) = cluster.gateways.values()
        streams, (begin, whole) = asyncio.run(streams_through(address, asking.requests, happen))
    observed = summed_up(streams, asking.expected, begin, course, 0.0)
    during = ((observed.times >= 0) & (observed.times < away_s)).sum() / away_s
    return Away(
        observed,
        sum(wrong_tokens(stream, asking.expected[stream.request]) for stream in streams),
        sum(any(begin <= at < begin + away_s for at in one.times[:1]) for one in streams),
        float(during / observed.rate_before(course.before_s)),
        whole - begin - away_s,
    )


def away_results(name: str, trials: Sequence[Away], course: Course) -> list[Result]:
    seen = [each.observed for each in trials]
    before = [1e3 * percentile(each.gaps_before.tolist(), 99) for each in seen]
    after = [1e3 * percentile(each.gaps_after.tolist(), 99) for each in seen]
    return [
        result(f"{name}.failed_requests", [each.failed for each in seen], "requests", FAILED),
        result(f"{name}.tokens_identical", [float(each.identical) for each in seen], "ratio", IDENTICAL),
        result(f"{name}.tokens_lost_or_repeated", [each.wrong for each in trials], "tokens", WRONG),
        result(f"{name}.served_meanwhile", [each.served for each in trials], "requests", SERVED),
        result(f"{name}.rate_ratio", [each.rate_ratio for each in trials], "ratio", RATE),
        result(f"{name}.longest_gap", [each.longest_gap_s for each in seen], "s"),
        result(f"{name}.p99_gap_before", before, "ms"),
        result(f"{name}.p99_gap_after", after, "ms"),
        result(f"{name}.back", [each.back_s for each in trials], "s", BACK),
    ]
