"""When nodes are lost, and when they are back: which experts to load where. Pure.

    experts that no node holds any more ─────────────► loaded at once by nodes that are there
    experts of fewer copies than there shall be ─────► copied, once their node has been away for a while
    a lost node is back, empty ──────────────────────► given experts again, later with every loss

The moves themselves are tables, prepared and published like any other (cluster/controller/syncing.py). An
order to drain a node whose moves were given up because another node was lost is carried on here too.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

import numpy as np

from cluster.balance.copies import complete
from cluster.balance.fleet import Booleans, Devices, Integers
from cluster.balance.migration import Budget, plan
from cluster.balance.placement import PlacementTable
from cluster.balance.problem import Placement, Problem
from cluster.balance.rebalance import Decision
from cluster.config import ControllerConfig
from cluster.controller.losses import failing
from cluster.controller.members import Role
from cluster.controller.rebalance import (
    DEFAULTS,
    Proposal,
    expert_sizes,
    library_speed,
    tables_of,
    widened,
    without_idle,
)
from cluster.controller.state import ControllerState, load_of, settled
from cluster.errors import Unavailable
from cluster.types import NodeId

RETURN_AFTER_S = 5.0
MOST_RETURN_S = 300.0
"""A node that was lost is given experts again when it has been back for so long; doubled with every loss."""


MOST_INCARNATION = 2**32


class Reason(StrEnum):
    orphans = "experts that no node holds any more"
    copies = "experts of too few copies"
    drain = "a drained node that still holds experts"
    back = "a node that is back"


Situation = tuple[tuple[int, int], frozenset[tuple[NodeId, int]]]
"""(epoch, version) of the table, and the nodes that may hold experts with the incarnation of each."""


@dataclass(frozen=True)
class Memory:
    """What the controller remembers of losses. lost: nodes that are, since when. losses: how often each was,
    and its incarnation the last time. back: those that were lost and have started again, since when.
    fruitless: the situation (`_situation`) in which copies lacked that no memory had room for.

    A process that was only silent, or cut off from a router, may be so still: nobody tries it before an
    operator asks for it (`moemesh rebalance`).
    """

    lost: Mapping[NodeId, float] = field(default_factory=dict)
    losses: Mapping[NodeId, tuple[int, int]] = field(default_factory=dict)
    back: Mapping[NodeId, float] = field(default_factory=dict)
    fruitless: Situation | None = None


def remember(memory: Memory, state: ControllerState, now: float) -> Memory:
    """With what has happened to nodes since."""
    lost = {node: memory.lost.get(node, now) for node in state.lost}
    losses = dict(memory.losses)
    for node in lost.keys() - memory.lost.keys():
        member = state.members.get(node)
        losses[node] = (losses.get(node, (0, 0))[0] + 1, member.incarnation if member else 0)
    there = {NodeId(member.id): member for member in state.of(Role.NODE) if member.ready}
    there = {node: member for node, member in there.items() if node not in state.lost | state.absent}
    back = {
        node: memory.back.get(node, now)
        for node, (_, incarnation) in losses.items()
        if node in there and there[node].incarnation > incarnation
    }
    return Memory(lost, losses, back, memory.fruitless)


def due(memory: Memory, state: ControllerState, config: ControllerConfig, now: float) -> Reason | None:
    """What there is to do, if anything; the most urgent first."""
    table = state.table
    if table is None or state.pending or not settled(state, now):
        return None
    if state.orphaned:
        return Reason.orphans
    if any(node in state.orders.drained for node in table.nodes):
        return Reason.drain
    patient = any(now - since < config.replicate_after_s for since in memory.lost.values())
    if not patient and _short(state, config) and memory.fruitless != _situation(state, table):
        return Reason.copies
    for node, since in memory.back.items():
        hold = min(RETURN_AFTER_S * 2 ** (memory.losses[node][0] - 1), MOST_RETURN_S)
        if node not in table.nodes and node not in state.orders.drained and now - since >= hold:
            return Reason.back
    return None


def given_back(memory: Memory) -> Memory:
    """Those that were back have had their turn, whether they got anything or not; losses still count."""
    never_again = {node: (count, MOST_INCARNATION) for node, (count, _) in memory.losses.items()}
    kept = {node: memory.losses[node] for node in memory.losses.keys() - memory.back.keys()}
    return replace(memory, back={}, losses=never_again | kept)


def propose(state: ControllerState, config: ControllerConfig = DEFAULTS) -> Proposal:
    """The fewest loads that give every expert the copies it shall have, without nodes that are lost or
    drained.

    An expert that nobody holds is loaded even beyond a node's memory: the node then reads it whenever it is
    asked for, within its budget. Raises Unavailable if there is no table or nobody to load anything.
    """
    if state.table is None:
        raise Unavailable("there is no table yet")
    table = widened(state, state.table)
    load = load_of(state)
    sizes = expert_sizes(state.shape)
    current = Placement.from_table(table, table.nodes, state.shape.experts)
    leaving = np.array([node in state.lost or node in state.orders.drained for node in table.nodes])
    able = ~leaving & np.array([node not in failing(state) for node in table.nodes])
    if not able.any():
        raise Unavailable("no node is left that could load experts")
    limits = _limits(state, table)
    target = complete(current.hosts & ~leaving, sizes, limits, able, config.min_replicas)
    rows = (sizes > 0).astype(np.float64) if load is None else load.load
    memory = np.maximum(limits, np.einsum("led,le->d", target | current.hosts, sizes))
    count = len(table.nodes)
    ones = np.ones(count)
    devices = Devices(table.nodes, ones, memory, ones * np.float64(1e9), np.zeros(count, np.int64))
    problem = Problem(rows, sizes, devices, current)
    budget = Budget(config.move_share, None, library_speed(state, table))
    gone = state.lost & frozenset(table.nodes)
    migration = plan(current, Placement(target), sizes, devices, rows, budget, gone)
    decision = Decision(migration, float("inf"), budget.share * migration.seconds, bool(migration.stages))
    tables = tables_of(problem, decision, table, gone)
    return Proposal(problem, decision, tables or _without(gone, table, target))


def _without(gone: Collection[NodeId], table: PlacementTable, hosts: Booleans) -> tuple[PlacementTable, ...]:
    """Where nothing is to be loaded: a table without the nodes that are gone, if others hold all they did."""
    nowhere = ~hosts.any(axis=2) & ~_dense(table)[:, None]
    if not gone or nowhere.any():
        return ()
    return (without_idle(Placement(hosts).to_table(table.nodes, table.epoch, table.version + 1)),)


def _dense(table: PlacementTable) -> Booleans:
    """[layers] bool: layers without experts."""
    return np.array([not experts for experts in table.replicas])


def _short(state: ControllerState, config: ControllerConfig) -> bool:
    """Whether the table names a lost node, or some expert has fewer copies than it shall. Asked every second:
    whether memories allow more is seen when it is tried."""
    return state.table is not None and (bool(state.lost) or lacking(state, config) > 0)


def lacking(state: ControllerState, config: ControllerConfig) -> int:
    """How many copies the table names too few."""
    if state.table is None:
        return 0
    copies = min(config.min_replicas, len(_able(state, state.table)))
    return sum(max(0, copies - len(holders)) for layer in state.table.replicas for holders in layer)


def fruitless(memory: Memory, state: ControllerState) -> Memory:
    """Nothing could be done about the copies that lack; nobody need try before something changes."""
    return replace(memory, fruitless=None if state.table is None else _situation(state, state.table))


def _situation(state: ControllerState, table: PlacementTable) -> Situation:
    """A node that starts again may have more memory, and one that could not load may be able to by now."""
    incarnations = {NodeId(node.id): node.incarnation for node in state.of(Role.NODE)}
    able = frozenset(
        (node, incarnations.get(node, 0)) for node in _able(state, table) if node not in failing(state)
    )
    return (table.epoch, table.version), able


def _able(state: ControllerState, table: PlacementTable) -> list[NodeId]:
    """Nodes that may hold experts."""
    barred = state.orders.drained | state.lost
    return [node for node in widened(state, table).nodes if node not in barred]


def _limits(state: ControllerState, table: PlacementTable) -> Integers:
    """[devices] bytes for experts; a node without a limit has room for all of them."""
    everything = int(expert_sizes(state.shape).sum())
    told = (state.members[node].stats if node in state.members else {} for node in table.nodes)
    return np.array([int(stats.get("memory_bytes", 0)) or everything for stats in told], np.int64)
