"""What the controller knows, and the questions that it answers by itself.

cluster/controller/syncing.py has how it changes, answers.py what others are told of it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

from cluster.balance.load import LoadStats, merge
from cluster.balance.placement import PlacementTable, newer
from cluster.controller.members import NO_TABLE, Health, Member, Role, health
from cluster.controller.orders import Orders
from cluster.types import NodeId


@dataclass(frozen=True)
class Shape:
    """What a table must place: `experts` in each of the `sparse` layers, over `nodes` expert nodes.

    expert_bytes: memory that the largest expert takes.
    """

    nodes: int
    layers: int
    experts: int
    sparse: tuple[int, ...]
    expert_bytes: int = 1


@dataclass(frozen=True)
class ControllerState:
    """Immutable. members: by id, in order of registration. pending: the tables after this one. orders: what
    operators have asked for. left: members that have said goodbye. lost: nodes of the table that have left,
    are dead, that a router cannot reach, or that cannot load again what they held before they restarted:
    nothing waits for them; one that was never there is waited for.
    shunned: nodes that were lost, with the incarnation that was, until they start again or are found to be
    well. orphaned: whether lost nodes alone hold some expert. absent: nodes outside the table that have
    left or are dead, however ready they were; routers cannot tell of a node before it is in their table.
    stranded: since when it is orphaned and nobody loads anything; None while that is not so.
    """

    epoch: int
    shape: Shape
    members: Mapping[str, Member] = field(default_factory=dict)
    table: PlacementTable | None = None
    pending: tuple[PlacementTable, ...] = ()
    stopping: bool = False
    orders: Orders = field(default_factory=Orders)
    left: frozenset[str] = frozenset()
    lost: frozenset[NodeId] = frozenset()
    shunned: Mapping[NodeId, int] = field(default_factory=dict)
    orphaned: bool = False
    absent: frozenset[NodeId] = frozenset()
    stranded: float | None = None

    def of(self, role: Role) -> list[Member]:
        return [member for member in self.members.values() if member.role is role]


def offer(state: ControllerState, table: PlacementTable) -> ControllerState:
    """Adopt `table` if it is newer than the present one; an old or equal one changes nothing."""
    return dataclasses.replace(state, table=table) if newer(table, state.table) else state


def stop(state: ControllerState) -> ControllerState:
    """From now on every answer tells its member to stop."""
    return dataclasses.replace(state, stopping=True)


def load_of(state: ControllerState) -> LoadStats | None:
    """What all routers together see; None before the first step of the first of them."""
    shape = (state.shape.layers, state.shape.experts)
    parts = [router.load for router in state.of(Role.ROUTER) if router.load is not None]
    parts = [part for part in parts if part.steps and part.rows.shape == shape]
    return merge(parts) if parts else None


def active_version(state: ControllerState) -> int:
    """Version of the table once every node in it reports having loaded it, else 0. Nodes that are lost do not
    count, unless there is an expert that nobody else holds."""
    if state.table is None:
        return 0
    wanted = (state.table.epoch, state.table.version)
    nodes = (state.members.get(node) for node in state.table.nodes if node not in state.lost)
    loaded = all(node is not None and node.table == wanted for node in nodes)
    return state.table.version if loaded and not state.orphaned else 0


def settled(state: ControllerState, now: float) -> bool:
    """Whether no router uses an older table than the present one, so that old copies can go.

    A router that has been silent for DEAD_AFTER_S has lost its lease.
    """
    if state.table is None:
        return False
    fine = (NO_TABLE, (state.table.epoch, state.table.version))
    return all(router.table in fine or health(router, now) is Health.DEAD for router in state.of(Role.ROUTER))
