"""Which nodes are lost, and what is lost with them. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from cluster.balance.placement import PlacementTable
from cluster.controller.members import NO_TABLE, Health, Member, Role, health
from cluster.controller.state import ControllerState
from cluster.types import NodeId

GRACE_S = 5.0
"""For so long calls wait for experts that nobody loads yet; shorter than a router waits for a silent node, so
that a call which cannot be helped fails no later for it."""


def with_losses(state: ControllerState, now: float) -> ControllerState:
    """With what is known by now of nodes of the table, and of those that could come into it."""
    if state.table is None:
        return state
    lost = frozenset(node for node in state.table.nodes if _is_lost(state, node, now))
    absent = frozenset(node for node in _newcomers(state, state.table) if _is_gone(state, node, now))
    if not (lost or absent or state.lost or state.absent or state.shunned):
        return state
    orphaned = bool(_orphans(state.table, lost))
    return dataclasses.replace(
        state, lost=lost, orphaned=orphaned, shunned=_shunned(state, lost), absent=absent
    )


def stranded(state: ControllerState, now: float) -> float | None:
    if state.pending or not state.orphaned:
        return None
    return now if state.stranded is None else state.stranded


def mending(state: ControllerState, now: float) -> bool:
    """Whether experts that nobody has any more are being loaded, or may soon be. Pending tables that leave
    them where they are would have been given up."""
    return state.orphaned and (state.stranded is None or now - state.stranded < GRACE_S)


def count_on(gone: frozenset[NodeId], state: ControllerState) -> bool:
    """Whether the pending tables have one of `gone` load something, or leave experts to them alone. A stage
    in between is looked at when it is next."""
    assert state.table is not None, "tables are pending beside the present one"
    following, last = state.pending[0], state.pending[-1]
    if _orphans(last, gone) or _orphans(following, gone) - _orphans(state.table, gone):
        return True
    return must_load(gone, state)


def must_load(nodes: Collection[NodeId], state: ControllerState) -> bool:
    """Whether the next table or the last of those that are pending gives one of `nodes` what it has not."""
    assert state.table is not None, "tables are pending beside the present one"
    return any(
        set(table.experts_of(node)) - set(state.table.experts_of(node))
        for table in (state.pending[0], state.pending[-1])
        for node in set(nodes) & set(table.nodes)
    )


def failing(state: ControllerState) -> frozenset[NodeId]:
    """Nodes that say what keeps them from loading what they are given: they are given nothing more."""
    return frozenset(NodeId(node.id) for node in state.of(Role.NODE) if node.error is not None)


def _orphans(table: PlacementTable, gone: frozenset[NodeId]) -> set[tuple[int, int]]:
    """(layer, index) of the experts that only `gone` have."""
    places = {place for place, node in enumerate(table.nodes) if node in gone}
    if not places:
        return set()
    return {
        (layer, index)
        for layer, experts in enumerate(table.replicas)
        for index, holders in enumerate(experts)
        if places.issuperset(holders)
    }


def _newcomers(state: ControllerState, table: PlacementTable) -> set[NodeId]:
    """Nodes outside `table` that experts are being moved to, or could be."""
    moving = {node for pending in state.pending for node in pending.nodes}
    return (moving | {NodeId(node.id) for node in state.of(Role.NODE)}) - set(table.nodes)


def _shunned(state: ControllerState, lost: frozenset[NodeId]) -> dict[NodeId, int]:
    """With those that are lost now; without those that have started again, or that the table has and routers
    reach."""
    incarnations = {NodeId(node.id): node.incarnation for node in state.of(Role.NODE)}
    table = () if state.table is None else state.table.nodes
    kept = {
        node: incarnation
        for node, incarnation in state.shunned.items()
        if incarnations.get(node, incarnation) <= incarnation and (node not in table or node in lost)
    }
    return kept | {node: incarnations.get(node, kept.get(node, 0)) for node in lost}


def _is_gone(state: ControllerState, node: NodeId, now: float) -> bool:
    """It has left, or is dead; not one that has never come."""
    member = state.members.get(node)
    return node in state.left if member is None else health(member, now) is Health.DEAD


def _is_lost(state: ControllerState, node: NodeId, now: float) -> bool:
    """A router's word counts for the incarnation that it knew: a node that has started again is there, unless
    it cannot load what it held."""
    member = state.members.get(node)
    if _is_gone(state, node, now):
        return True
    if member is None:
        return False
    routers = [router for router in state.of(Role.ROUTER) if health(router, now) is Health.ALIVE]
    if any(router.lost.get(node) == member.incarnation for router in routers):
        return True
    return _came_back_empty(member) and any(router.table == _version(state) for router in routers)


def _came_back_empty(node: Member) -> bool:
    """It says why it can load nothing. Where no router uses the table yet that fails the start."""
    return node.error is not None and node.table == NO_TABLE


def _version(state: ControllerState) -> tuple[int, int]:
    return NO_TABLE if state.table is None else (state.table.epoch, state.table.version)
