"""What moving experts gains on nodes that are really unequal, held against what the dispatch LP promises."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.balance.bounds import dispatch_bound
from cluster.balance.fleet import Floats
from cluster.balance.placement import PlacementTable
from cluster.balance.problem import Placement
from cluster.config import EngineConfig
from cluster.experiments.live.client import Generated, generate, generate_while
from cluster.experiments.live.cluster import LiveNode, expert_model, live_cluster
from cluster.experiments.live.pace import row_rate
from cluster.fleet.control import SYNC_PERIOD_S
from cluster.library.reader import Library
from cluster.types import EngineRequest

Tokens = tuple[tuple[int, ...], ...]

DROPPED_WITHIN_S = 3 * SYNC_PERIOD_S
"""Nodes let old copies go when their sync tells them that the last table is settled."""


@dataclass(frozen=True, eq=False)
class SpeedUp:
    """One trial. before, after: [steps] seconds of a step with the first table, and when all has moved.
    lp_before, lp_after: [steps] seconds that the dispatch LP says the experts of each step need, for the rows
    that they had. promised_s: what the controller's decision says a mean step gains; balancedness: of the
    mean load before and after, likewise. identical: whether every token was as in one process, also while
    experts moved. moved: bytes; copies: of all experts, afterwards."""

    before: Floats
    after: Floats
    lp_before: Floats
    lp_after: Floats
    promised_s: float
    balancedness: tuple[float, float]
    identical: bool
    moved: int
    copies: int

    def gain(self, percent: float) -> float:
        """Seconds that the step at a percentile became shorter by."""
        return float(np.percentile(self.before, percent) - np.percentile(self.after, percent))

    def lp_gain(self, percent: float) -> float:
        """The same, as the LP says."""
        return float(np.percentile(self.lp_before, percent) - np.percentile(self.lp_after, percent))


def speed_up(
    library: Library,
    rates: Sequence[float],
    requests: Sequence[EngineRequest],
    expected: Tokens,
    rows: npt.NDArray[np.int64],
) -> SpeedUp:
    """Serve the requests from one router over paced nodes, have the controller move experts while it serves,
    and serve them again.

    rates: rows per second of each node. expected: the requests' tokens. rows: [steps, layers, experts] of
    their decode steps. Raises StartFailed, Unavailable.
    """
    model = expert_model(library)
    nodes = [LiveNode(row_rate(rate, model)) for rate in rates]
    with live_cluster(library, nodes, [EngineConfig()]) as live:
        address, controller = live.router_address(), live.controller
        short = [_shortened(request) for request in requests]
        asyncio.run(generate(address, short))  # code, caches and sockets are warm
        first = PlacementTable.from_wire(controller.status(detail=True)["table"])
        before = asyncio.run(generate(address, requests))

        def move() -> dict[str, Any]:
            found = controller.rebalance(dry_run=False)
            live.wait_moved()
            return found

        meanwhile, decision = asyncio.run(generate_while(address, short, move))
        time.sleep(DROPPED_WITHIN_S)
        meanwhile.append(asyncio.run(generate(address, short)))
        after = asyncio.run(generate(address, requests))
        last = PlacementTable.from_wire(controller.status(detail=True)["table"])
    speed = np.asarray(rates, np.float64)
    answers: list[Generated] = [before, *meanwhile, after]
    return SpeedUp(
        before.step_s,
        after.step_s,
        lp_seconds(rows, first, speed),
        lp_seconds(rows, last, speed),
        decision["gain_s"],
        (decision["now"]["balancedness"], decision["then"]["balancedness"]),
        all(_as_expected(answer.tokens, expected) for answer in answers),
        decision["bytes"],
        int(decision["then"]["copies"]),
    )


def _shortened(request: EngineRequest) -> EngineRequest:
    """The same tokens, but only the first of them."""
    sampling = replace(request.sampling, max_tokens=-(-request.sampling.max_tokens // 4))
    return replace(request, sampling=sampling)


def _as_expected(tokens: Tokens, expected: Tokens) -> bool:
    pairs = zip(tokens, expected, strict=True)
    return all(one and one == whole[: len(one)] for one, whole in pairs)


def lp_seconds(rows: npt.NDArray[np.int64], table: PlacementTable, speed: Floats) -> Floats:
    """[steps] seconds that experts compute, layer after layer, if rows are dispatched optimally.

    rows: [steps, layers, experts]; speed: rows per second, in the order of the table's nodes.
    """
    hosts = Placement.from_table(table, table.nodes, rows.shape[2]).hosts
    sparse = np.flatnonzero(hosts.any(axis=(1, 2)))
    return np.array(
        [
            sum(
                dispatch_bound(step[i].astype(np.float64), hosts[layer], speed)
                for i, layer in enumerate(sparse)
            )
            for step in rows
        ]
    )
