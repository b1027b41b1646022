"""What clients see of a fault: streams through one router over paced nodes, one of which fails."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from cluster.balance.fleet import Floats
from cluster.balance.placement import PlacementTable, round_robin
from cluster.config import ControllerConfig, EngineConfig
from cluster.experiments.live.cluster import LiveCluster, LiveNode, expert_model, live_cluster
from cluster.experiments.live.faults import Fault
from cluster.experiments.live.pace import row_rate
from cluster.experiments.live.streams import Stream, streams_while
from cluster.library.reader import Library
from cluster.types import EngineRequest, NodeId

VICTIM = "node-1"
WINDOW_S = 1.0
"""Over which throughput is counted."""


@dataclass(frozen=True)
class Course:
    """Seconds: streams that warm up, that are measured before the fault, and after it."""

    warm_s: float = 2.0
    before_s: float = 4.0
    after_s: float = 8.0


@dataclass(frozen=True)
class Asking:
    """requests: asked again and again, all at once. expected: the tokens of each, of one process."""

    library: Library
    requests: Sequence[EngineRequest]
    expected: Sequence[Sequence[int]]


@dataclass(frozen=True, eq=False)
class Observed:
    """failed: streams that ended with an error. identical: whether every token of every stream was as in one
    process. times: of all tokens, on a clock that is 0 at the fault. gaps_before, gaps_after: between two
    tokens of one stream, by when the later one came. load_s: seconds that nodes took to load experts, the
    longest."""

    failed: int
    identical: bool
    times: Floats
    gaps_before: Floats
    gaps_after: Floats
    load_s: float

    @property
    def longest_gap_s(self) -> float:
        return float(self.gaps_after.max())

    def rate_before(self, seconds: float) -> float:
        """Tokens per second of the last `seconds` before the fault."""
        return float(np.count_nonzero((self.times >= -seconds) & (self.times < 0)) / seconds)

    def back_s(self, rate: float) -> float:
        """Seconds from the fault to the first window with at least so many tokens per second; inf if none
        came."""
        after = self.times[self.times >= 0]
        enough = int(np.ceil(rate * WINDOW_S))
        begins = after[: max(after.size - enough + 1, 0)]
        quick = after[enough - 1 :] - begins <= WINDOW_S
        return float(begins[quick][0]) if quick.any() else float("inf")


def observe(
    asking: Asking, rates: Sequence[float], fault: Fault | None, copies: int, course: Course
) -> Observed:
    """Serve while `fault` happens to one node; None: to none.

    rates: rows per second of each node. copies: of every expert, 1 or 2. Raises StartFailed, Unavailable.
    """
    library = asking.library
    model = expert_model(library)
    relayed = fault is Fault.cut
    nodes = [LiveNode(row_rate(rate, model), relayed=relayed) for rate in rates]
    table = in_copies(library, len(nodes), copies)
    config = ControllerConfig(min_replicas=copies)
    with live_cluster(library, nodes, [EngineConfig()], config=config, table=table) as live:

        def happen() -> float:
            time.sleep(course.warm_s + course.before_s)
            if fault is not None:
                fault.happen_to(live.processes[VICTIM])
            begin = time.monotonic()
            time.sleep(course.after_s)
            return begin

        streams, begin = asyncio.run(streams_while(live.router_address(), asking.requests, happen))
        load_s = _load_s(live) if copies == 1 else 0.0
    return summed_up(streams, asking.expected, begin, course, load_s)


def in_copies(library: Library, nodes: int, copies: int) -> PlacementTable:
    """Every expert on so many neighbours of node-0, node-1 …, round and round."""
    spec = library.spec
    names = [NodeId(f"node-{number}") for number in range(nodes)]
    plain = round_robin(spec.layers, spec.experts, names, sparse=spec.sparse_layers)
    replicas = tuple(
        tuple(tuple((first + copy) % nodes for copy in range(copies)) for first, *_ in layer)
        for layer in plain.replicas
    )
    return dataclasses.replace(plain, replicas=replicas)


def _load_s(live: LiveCluster) -> float:
    members = live.controller.status()["members"]
    return max(float(m["stats"].get("load_s", 0.0)) for m in members if m["id"] != VICTIM)


def summed_up(
    streams: Sequence[Stream],
    expected: Sequence[Sequence[int]],
    begin: float,
    course: Course,
    load_s: float,
) -> Observed:
    """What the streams tell of a fault at `begin`, on their clock. expected: tokens of each request."""
    times = np.sort(np.array([each - begin for stream in streams for each in stream.times]))
    ends = np.array([b - begin for stream in streams for _, b in pairwise(stream.times)])
    gaps = np.array([b - a for stream in streams for a, b in pairwise(stream.times)])
    measured = ends >= -course.before_s
    return Observed(
        sum(bool(stream.error) for stream in streams),
        all(as_expected(stream, expected[stream.request]) for stream in streams),
        times,
        gaps[measured & (ends < 0)],
        gaps[ends >= 0],
        load_s,
    )


def as_expected(stream: Stream, tokens: Sequence[int]) -> bool:
    """All of them, of a stream that has ended well; otherwise the first."""
    whole = stream.ended and not stream.error
    wanted = tokens if whole else tokens[: len(stream.tokens)]
    return list(wanted) == stream.tokens
