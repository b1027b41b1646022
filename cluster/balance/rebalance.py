"""Whether to move experts: what a new placement would gain, what getting there would cost. Pure.

The controller and the simulator ask the same question: `decide` plans the way to a target that some policy
made and holds its gain against its cost.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from cluster.balance.choice import Batch, flow, makespan
from cluster.balance.fleet import Booleans
from cluster.balance.migration import Budget, Migration, payback, plan
from cluster.balance.problem import Placement, Problem
from cluster.errors import ConfigError
from cluster.types import NodeId

RESOLUTION = 4096
"""Rows that a layer's mean load is scaled to before whole rows are dispatched, so that rounding does not
count.
"""


@dataclass(frozen=True, eq=False)
class Decision:
    """migration: how to get there. gain: seconds per step saved, computing only. cost: seconds of serving
    lost to the moves. worth: whether the gain pays for the cost within the horizon."""

    migration: Migration
    gain: float
    cost: float
    worth: bool


def decide(
    problem: Problem, target: Placement, horizon: float, budget: Budget, gone: Collection[NodeId] = ()
) -> Decision:
    """Weigh `target` against where things are now.

    horizon: steps over which the gain is counted. The cost is the moves' time by the share of the links that
    they take from serving, an upper bound: nothing waits for a move. Experts that no live device holds are
    worth any cost. Raises ConfigError without a current placement and what `plan` raises.
    """
    current = problem.current
    if current is None:
        raise ConfigError("there is no current placement to move from")
    migration = plan(current, target, problem.expert_bytes, problem.devices, problem.load, budget, gone)
    lost = np.array([name in gone for name in problem.devices.names])
    needed = bool((problem.sparse[:, None] & ~(current.hosts & ~lost).any(axis=2)).any())
    gain = float("inf")
    if not needed:
        gain = step_seconds(problem, current, lost) - step_seconds(problem, migration.reached, lost)
    cost = budget.share * migration.seconds
    return Decision(migration, gain, cost, bool(migration.stages) and payback(gain, horizon, cost))


def step_seconds(problem: Problem, placement: Placement, lost: Booleans | None = None) -> float:
    """Seconds that experts compute in a step of the mean load, layer after layer, rows dispatched optimally.

    lost: [devices] bool, devices that count for nothing.
    """
    hosts = placement.hosts if lost is None else placement.hosts & ~lost
    idle = np.zeros(len(problem.devices))
    total = 0.0
    for layer in np.flatnonzero(problem.load.sum(axis=1) > 0):
        scale = RESOLUTION / problem.load[layer].sum()
        rows = np.rint(problem.load[layer] * scale).astype(np.int64)
        batch = Batch(rows, hosts[layer], problem.devices.speed, idle)
        total += makespan(batch, flow(batch)) / scale
    return total
