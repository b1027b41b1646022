"""What clients see of a node that dies, freezes, is cut off or slows down: `moemesh bench failover`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cluster.cli.bench import Case
from cluster.cli.bench_controller import away_results, observe_away
from cluster.cli.bench_gateways import gateway_results, observe_gateways
from cluster.cli.bench_routers import observe_routers, router_results
from cluster.cli.local import local_engine, run
from cluster.cli.report import NO_TARGET, Result, Target, percentile, result
from cluster.experiments.live.failover import Asking, Course, Observed, observe
from cluster.experiments.live.faults import Fault
from cluster.experiments.live.streams import sampled_requests
from cluster.library.bundled import open_model
from cluster.library.reader import Library
from cluster.types import Emitted, EngineRequest, RequestId

STREAMS, TOKENS = 16, 192
RATE = 4_000.0
"""Rows per second of a node: a small part of what a core computes, so that nodes do not share the cores."""

NODES = 3

LONGEST_GAP = Target(must=1.0, at_most=True)
BACK = Target(must=5.0, at_most=True, reference="90 % of two nodes' throughput")
FAILED = Target(must=0, at_most=True)
IDENTICAL = Target(must=1.0, reference="one process")
SLOW_GAP = Target(must=2.0, at_most=True, reference="the same streams before")
BEYOND_LOAD = Target(must=1.5, at_most=True, reference="gap less the time to load the experts")


ROUTERS = {Case.router: Fault.kill, Case.frozen_router: Fault.freeze}
"""What happens to one of two routers."""

APART = {*ROUTERS, Case.controller, Case.gateway}
"""Where no node fails."""


def fault_of(case: Case) -> Fault:
    """To one of the nodes."""
    return Fault.kill if case is Case.sole else Fault(case.value)


def copies_of(case: Case) -> int:
    return 1 if case is Case.sole else 2


@dataclass(frozen=True)
class FailoverPreset:
    """away_s: how long there is no controller."""

    trials: int
    away_s: float
    course: Course = field(default_factory=Course)


FAILOVER_PRESETS = {"minimal": FailoverPreset(1, 10.0), "full": FailoverPreset(5, 60.0)}


def measure_failover(
    cases: Sequence[Case], preset: FailoverPreset, progress: Callable[[str], None]
) -> list[Result]:
    """Raises StartFailed, Unavailable."""
    library = open_model()
    requests = sampled_requests(library, STREAMS, TOKENS)
    progress("the tokens of one process")
    asking = Asking(library, requests, reference(library, requests))
    two = math.nan
    if any(case is not Case.slow and case not in APART for case in cases):
        progress("two nodes alone")
        course = replace(preset.course, after_s=0.5)
        alone = observe(asking, [RATE] * 2, None, 2, course)
        two = alone.rate_before(course.before_s)
    results = [] if math.isnan(two) else [result("failover.two_nodes.tokens_per_s", [two], "tokens/s")]
    for case in cases:
        trials = []
        for trial in range(preset.trials):
            progress(f"{case.value}, trial {trial + 1} of {preset.trials}")
            trials.append(_trial(case, asking, preset))
        results += _summary(case, trials, preset.course, 0.9 * two)
    return results


def _trial(case: Case, asking: Asking, preset: FailoverPreset) -> Any:
    """What `_summary` takes for this case."""
    if case is Case.controller:
        return observe_away(asking, preset.course, preset.away_s)
    if case is Case.gateway:
        return observe_gateways(asking, preset.course)
    rates = [RATE] * NODES
    if case in ROUTERS:
        return observe_routers(asking, rates, ROUTERS[case], preset.course)
    return observe(asking, rates, fault_of(case), copies_of(case), preset.course)


def _summary(case: Case, trials: Sequence[Any], course: Course, enough: float) -> list[Result]:
    name = f"failover.{case.value.replace('-', '_')}"
    if case is Case.controller:
        return away_results(name, trials, course)
    if case is Case.gateway:
        return gateway_results(name, trials, course)
    if case in ROUTERS:
        return router_results(name, trials, course)
    return _results(case, trials, course, enough)


def _results(case: Case, trials: Sequence[Observed], course: Course, enough: float) -> list[Result]:
    name = f"failover.{case.value}"
    gap = LONGEST_GAP if case in (Case.kill, Case.freeze, Case.cut) else NO_TARGET
    results = [
        result(f"{name}.failed_requests", [each.failed for each in trials], "requests", FAILED),
        result(f"{name}.tokens_identical", [float(each.identical) for each in trials], "ratio", IDENTICAL),
        result(f"{name}.longest_gap", [each.longest_gap_s for each in trials], "s", gap),
        result(
            f"{name}.tokens_per_s_before", [each.rate_before(course.before_s) for each in trials], "tokens/s"
        ),
    ]
    before = [1e3 * percentile(each.gaps_before.tolist(), 99) for each in trials]
    after = [1e3 * percentile(each.gaps_after.tolist(), 99) for each in trials]
    results += [
        result(f"{name}.p99_gap_before", before, "ms"),
        result(f"{name}.p99_gap_after", after, "ms"),
    ]
    if case is Case.slow:
        ratios = [b / a for a, b in zip(before, after, strict=True)]
        return [*results, result(f"{name}.p99_gap_ratio", ratios, "ratio", SLOW_GAP)]
    back = [each.back_s(enough) for each in trials]
    results.append(result(f"{name}.back", back, "s", BACK if case is not Case.sole else NO_TARGET))
    if case is Case.sole:
        loads = [each.load_s for each in trials]
        beyond = [each.longest_gap_s - each.load_s for each in trials]
        results += [
            result(f"{name}.load", loads, "s"),
            result(f"{name}.gap_beyond_load", beyond, "s", BEYOND_LOAD),
        ]
    return results


def reference(library: Library, requests: Sequence[EngineRequest]) -> list[list[int]]:
    tokens: dict[RequestId, list[int]] = {request.request_id: [] for request in requests}
    with local_engine(library) as engine:
        for event in run(engine, *requests):
            if isinstance(event, Emitted):
                tokens[event.request_id].append(event.token_id)
    return list(tokens.values())
