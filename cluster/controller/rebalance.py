"""What to move in a live cluster: from what its members report to a sequence of tables. Pure.

Each table of the sequence is prepared before it is published (cluster/controller/syncing.py), and every stage
of a migration (cluster/balance/migration.py) is one table, so that memory is never exceeded and no expert is
ever without a copy.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cluster.balance.bounds import layer_bounds
from cluster.balance.copies import complete
from cluster.balance.fleet import Devices, Floats, Integers
from cluster.balance.heuristic import place
from cluster.balance.load import LoadStats
from cluster.balance.migration import Budget
from cluster.balance.placement import PlacementTable
from cluster.balance.problem import Placement, PlacementPolicy, Problem
from cluster.balance.rebalance import Decision, decide, step_seconds
from cluster.config import ControllerConfig
from cluster.controller.losses import failing
from cluster.controller.members import Role
from cluster.controller.state import ControllerState, Shape, load_of
from cluster.errors import OutOfMemoryBudget, Unavailable
from cluster.types import ExpertId, NodeId

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
    trusting: bool = False,
) -> Proposal:
    """Place the experts anew for `load`, or what the routers see, and weigh the way there.

    Nodes that are drained or lost get none, and give up what they have; those that cannot load get nothing
    more; nodes that are not in the table yet get some. trusting: so do those that were lost and go on as the
    same process, if they follow the tables.

    Raises Unavailable while there is no table, a node has not come yet, nothing has been computed, moves are
    under way or no node can load anything, and OutOfMemoryBudget where the nodes cannot hold every expert at
    once.
    """
    table, load = state.table, load or load_of(state)
    there = state.members.keys() | state.lost
    if table is None or any(node not in there for node in table.nodes):
        raise Unavailable("not all nodes are there; try again when the cluster is ready")
    if state.pending:
        raise Unavailable(f"experts are being moved, {len(state.pending)} tables to go; try again later")
    if load is None:
        raise Unavailable("no router has computed anything yet, so there is no load to place experts for")
    table = widened(state, table, trusting)
    gone = state.lost & frozenset(table.nodes)
    staying, stuck = frozenset(table.nodes) - state.orders.drained - gone, failing(state)
    if staying and staying <= stuck:
        raise Unavailable("no node is left that could load experts; `moemesh status` says what keeps them")
    policy = _sparing(policy, state.orders.drained | gone)
    problem = _problem(state, table, load)
    budget = Budget(config.move_share, config.move_bytes or None, library_speed(state, table))
    target = _given_nothing_more(policy(problem), problem, stuck)
    target = _with_copies(target, problem, staying - stuck, config.min_replicas)
    decision = decide(problem, target, config.horizon, budget, gone)
    return Proposal(problem, decision, tables_of(problem, decision, table, gone))


def _given_nothing_more(placement: Placement, problem: Problem, nodes: Collection[NodeId]) -> Placement:
    """Without what these would have to load: they say why they cannot."""
    assert problem.current is not None, "propose() knows it"
    stuck = np.array([node in nodes for node in problem.devices.names])
    return Placement(placement.hosts & (problem.current.hosts | ~stuck))


def _with_copies(placement: Placement, problem: Problem, able: Collection[NodeId], copies: int) -> Placement:
    """With copies added on `able` nodes where experts have fewer than they shall, so that no move undoes a
    repair."""
    devices = problem.devices
    may = np.array([node in able for node in devices.names])
    return Placement(complete(placement.hosts, problem.expert_bytes, devices.memory, may, copies))


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
    sizes = expert_sizes(shape)
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


def expert_sizes(shape: Shape) -> Integers:
    """[layers, experts] bytes, 0 in dense layers."""
    sizes: Integers = np.zeros((shape.layers, shape.experts), np.int64)
    sizes[list(shape.sparse)] = shape.expert_bytes
    return sizes


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
    staying = set(table.nodes) - state.orders.drained - state.lost
    share = int(SPARE * sizes.sum() / max(1, len(staying)))
    limits = [int(stats.get("memory_bytes", 0)) for stats in _stats(state, table)]
    held = current.device_bytes(sizes)
    return np.array(
        [limit or max(share, mine) for limit, mine in zip(limits, held.tolist(), strict=True)], np.int64
    )


def _stats(state: ControllerState, table: PlacementTable) -> list[Mapping[str, Any]]:
    """Of every node of the table; nothing of one that has left."""
    return [state.members[node].stats if node in state.members else {} for node in table.nodes]


def library_speed(state: ControllerState, table: PlacementTable) -> float:
    """Bytes per second of the slowest node that has told."""
    told = [float(stats.get("load_bytes_per_s", 0.0)) for stats in _stats(state, table)]
    return min((speed for speed in told if speed > 0), default=LIBRARY)


def tables_of(
    problem: Problem, decision: Decision, table: PlacementTable, gone: Collection[NodeId] = ()
) -> tuple[PlacementTable, ...]:
    """The table after each stage; the last one without nodes that hold nothing. gone: nodes that are named
    only while they have experts that nobody else has got yet."""
    assert problem.current is not None, "propose() knows it"
    hosts, place_of = problem.current.hosts.copy(), {node: i for i, node in enumerate(table.nodes)}
    lost = np.array([node in gone for node in table.nodes])
    before = hosts & lost
    hosts &= ~lost
    tables = []
    for number, stage in enumerate(decision.migration.stages, start=1):
        for load in stage.loads:
            hosts[load.expert.layer, load.expert.index, place_of[load.to]] = True
        for drop in stage.drops:
            hosts[drop.expert.layer, drop.expert.index, place_of[drop.device]] = False
        nowhere = ~hosts.any(axis=2, keepdims=True)
        placed = Placement(hosts | (before & nowhere))
        stage_table = placed.to_table(table.nodes, table.epoch, table.version + number)
        tables.append(without_idle(stage_table, gone))
    return (*tables[:-1], *map(without_idle, tables[-1:]))


def without_idle(table: PlacementTable, among: Collection[NodeId] | None = None) -> PlacementTable:
    """Without the nodes that hold nothing: nobody needs to wait for them. among: leave out these alone."""
    holding = {holder for layer in table.replicas for holders in layer for holder in holders}
    kept = {place for place, node in enumerate(table.nodes) if among is not None and node not in among}
    busy = sorted(holding | kept)
    place_of = {node: place for place, node in enumerate(busy)}
    replicas = tuple(
        tuple(tuple(place_of[holder] for holder in holders) for holders in layer) for layer in table.replicas
    )
    return replace(table, nodes=tuple(table.nodes[node] for node in busy), replicas=replicas)


def missing_bytes(expert_bytes: Integers, memory: Integers) -> int:
    """Bytes that lack for one copy of every expert, each whole on a device; 0 if they fit.

    expert_bytes: [layers, experts], of one size but for dense layers' zeros. memory: [devices].
    """
    size = int(expert_bytes.max())
    places = int(np.sum(memory // size))
    return max(0, int(np.count_nonzero(expert_bytes)) - places) * size


def widened(state: ControllerState, table: PlacementTable, trusting: bool = False) -> PlacementTable:
    """The same placement, over the nodes too that could take part in it from now on."""
    latest = (table.epoch, table.version)
    fine = [
        node.id
        for node in state.of(Role.NODE)
        if node.ready
        and node.error is None
        and node.id not in state.absent
        and (node.id not in state.shunned or (trusting and node.table == latest))
    ]
    more = sorted(set(map(NodeId, fine)) - set(table.nodes) - state.orders.drained)
    return replace(table, nodes=(*table.nodes, *more))


def _sparing(policy: PlacementPolicy, drained: Collection[NodeId]) -> PlacementPolicy:
    """`policy`, for which drained devices have no memory.

    It raises OutOfMemoryBudget where the others lack room, saying by how many bytes.
    """

    def place_elsewhere(problem: Problem) -> Placement:
        devices = problem.devices
        memory = np.where([name in drained for name in devices.names], 0, devices.memory)
        missing = missing_bytes(problem.expert_bytes, memory)
        if missing:
            raise OutOfMemoryBudget(
                f"the nodes that may hold experts lack {missing} bytes for one copy of each; give them more "
                "memory or add a node"
            )
        return policy(replace(problem, devices=replace(devices, memory=memory)))

    return place_elsewhere
