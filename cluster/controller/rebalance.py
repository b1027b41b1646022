"""What to move in a live cluster: from what its members report to a sequence of tables. Pure.

Each table of the sequence is prepared before it is published (cluster/controller/state.py), and every stage
of a migration (cluster/balance/migration.py) is one table, so that memory is never exceeded and no expert is
ever without a copy.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cluster.balance.bounds import layer_bounds
from cluster.balance.fleet import Devices, Floats, Integers
from cluster.balance.heuristic import place
from cluster.balance.load import LoadStats
from cluster.balance.migration import Budget
from cluster.balance.placement import PlacementTable
from cluster.balance.problem import Placement, PlacementPolicy, Problem
from cluster.balance.rebalance import Decision, decide, step_seconds
from cluster.config import ControllerConfig
from cluster.controller.state import ControllerState, load_of
from cluster.errors import Unavailable
from cluster.types import ExpertId

DEFAULTS = ControllerConfig()

SPARE = 1.25
"""A node without a memory limit may hold so many times an equal share of the experts."""

LINK = 125e6
"""Bytes per second of a link whose bandwidth routers cannot tell: a gigabit."""

LIBRARY = 200e6
"""Bytes per second at which a node reads its library before it has told: a slow SSD."""


@dataclass(frozen=True, eq=False)
class Proposal:
    """tables: the way there, one a stage; empty where nothing is to be moved."""

    problem: Problem
    decision: Decision
    tables: tuple[PlacementTable, ...]


def propose(
    state: ControllerState,
    config: ControllerConfig = DEFAULTS,
    load: LoadStats | None = None,
    policy: PlacementPolicy = place,
) -> Proposal:
    """Place the experts anew for `load`, or what the routers see, and weigh the way there.

    Raises Unavailable while there is no table, a node is missing, nothing has been computed or moves are
    under way, and OutOfMemoryBudget where the nodes cannot hold every expert at once.
    """
    table, load = state.table, load or load_of(state)
    if table is None or any(node not in state.members for node in table.nodes):
        raise Unavailable("not all nodes are there; try again when the cluster is ready")
    if state.pending:
        raise Unavailable(f"experts are being moved, {len(state.pending)} tables to go; try again later")
    if load is None:
        raise Unavailable("no router has computed anything yet, so there is no load to place experts for")
    problem = _problem(state, table, load)
    budget = Budget(config.move_share, config.move_bytes or None, _library_speed(state, table))
    decision = decide(problem, policy(problem), config.horizon, budget)
    return Proposal(problem, decision, _tables(problem, decision, table))


def begin(state: ControllerState, proposal: Proposal) -> ControllerState:
    """Start to move. Raises Unavailable if the table has changed since the proposal was made."""
    first = proposal.tables[0] if proposal.tables else None
    table = state.table
    fits = first is None or (table and (table.epoch, table.version + 1) == (first.epoch, first.version))
    if state.pending or not fits:
        raise Unavailable("the table has changed meanwhile; try again")
    return replace(state, pending=proposal.tables)


def describe(proposal: Proposal) -> dict[str, Any]:
    """For people and programs, msgpack-able. Seconds are of a mean step; balancedness is mean over largest
    time of a node, at best `attainable` with so many copies."""
    problem, decision = proposal.problem, proposal.decision
    migration = decision.migration
    assert problem.current is not None, "propose() knows it"
    return {
        "worth": decision.worth,
        "gain_s": decision.gain,
        "cost_s": decision.cost,
        "now": _quality(problem, problem.current),
        "then": _quality(problem, migration.reached),
        "bytes": migration.bytes,
        "seconds": migration.seconds,
        "stages": [
            {
                "loads": [_move(each.expert, str(each.to)) for each in stage.loads],
                "drops": [_move(each.expert, str(each.device)) for each in stage.drops],
                "seconds": stage.seconds,
            }
            for stage in migration.stages
        ],
        "refused": [_move(each.expert, each.reason) for each in migration.refused],
    }


def _move(expert: ExpertId, where: str) -> dict[str, Any]:
    return {"layer": expert.layer, "expert": expert.index, "where": where}


def _quality(problem: Problem, placement: Placement) -> dict[str, float]:
    bounds = layer_bounds(problem, placement).values()
    return {
        "step_s": step_seconds(problem, placement),
        "bound_s": sum(layer.fluid for layer in bounds),
        "balancedness": float(np.mean([layer.balancedness for layer in bounds])),
        "attainable": float(np.mean([layer.attainable for layer in bounds])),
        "copies": float(placement.hosts.sum()),
    }


def _problem(state: ControllerState, table: PlacementTable, load: LoadStats) -> Problem:
    shape = state.shape
    sizes: Integers = np.zeros((shape.layers, shape.experts), np.int64)
    sizes[list(shape.sparse)] = shape.expert_bytes
    current = Placement.from_table(table, table.nodes, shape.experts)
    count = len(table.nodes)
    devices = Devices(
        table.nodes,
        _speeds(table, load),
        _memory(state, table, sizes, current),
        _bandwidths(table, load),
        np.zeros(count, np.int64),
    )
    return Problem(load.load, sizes, devices, current)


def _bandwidths(table: PlacementTable, load: LoadStats) -> Floats:
    """Bytes per second between each node and the routers, as their round trips tell."""
    told = [load.nodes[node].link.bandwidth if node in load.nodes else np.nan for node in table.nodes]
    bandwidth: Floats = np.nan_to_num(np.array(told), nan=LINK)
    return bandwidth


def _speeds(table: PlacementTable, load: LoadStats) -> Floats:
    """Rows per second, computed and carried; a node that has not answered yet is as fast as the others on
    average."""
    speed = np.array([load.nodes[node].rate if node in load.nodes else np.nan for node in table.nodes])
    known = speed[np.isfinite(speed) & (speed > 0)]
    speed[~(np.isfinite(speed) & (speed > 0))] = known.mean() if known.size else 1.0
    return speed


def _memory(state: ControllerState, table: PlacementTable, sizes: Integers, current: Placement) -> Integers:
    """[nodes] bytes for experts: a node's limit, or some more than an equal share of all experts."""
    share = int(SPARE * sizes.sum() / len(table.nodes))
    limits = [int(state.members[node].stats.get("memory_bytes", 0)) for node in table.nodes]
    held = current.device_bytes(sizes)
    return np.array(
        [limit or max(share, mine) for limit, mine in zip(limits, held.tolist(), strict=True)], np.int64
    )


def _library_speed(state: ControllerState, table: PlacementTable) -> float:
    """Bytes per second of the slowest node that has told."""
    told = [float(state.members[node].stats.get("load_bytes_per_s", 0.0)) for node in table.nodes]
    return min((speed for speed in told if speed > 0), default=LIBRARY)


def _tables(problem: Problem, decision: Decision, table: PlacementTable) -> tuple[PlacementTable, ...]:
    """The table after each stage."""
    assert problem.current is not None, "propose() knows it"
    hosts, place_of = problem.current.hosts.copy(), {node: i for i, node in enumerate(table.nodes)}
    tables = []
    for number, stage in enumerate(decision.migration.stages, start=1):
        for load in stage.loads:
            hosts[load.expert.layer, load.expert.index, place_of[load.to]] = True
        for drop in stage.drops:
            hosts[drop.expert.layer, drop.expert.index, place_of[drop.device]] = False
        tables.append(Placement(hosts.copy()).to_table(table.nodes, table.epoch, table.version + number))
    return tuple(tables)
