"""How what the controller knows changes. Pure: values and `now` in, values out.

A role calls SYNC again and again; each call is folded into the state with `sync`, and answers.view is the
answer. Members are never asked for anything: they pull, so a dead one costs nothing and a new one needs no
list.

    expected nodes have registered ──► round-robin table ──► every node has loaded it ──► table is active
    moves: every node has loaded the next table beside this one ──► it is the table ──► no router uses the
        old one ──► nodes drop what the table does not give them, and load the one after
    node comes back as a new incarnation: same name, same place, nothing loaded ──► not active until it has
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import cast

from cluster.balance.placement import PlacementTable, round_robin
from cluster.controller.losses import count_on, failing, must_load, stranded, with_losses
from cluster.controller.members import NO_TABLE, Member, Role
from cluster.controller.state import ControllerState, offer
from cluster.errors import ProtocolError
from cluster.types import NodeId


def sync(state: ControllerState, member: Member) -> ControllerState:
    """Fold in one SYNC. A late message of an older incarnation changes nothing."""
    known = state.members.get(member.id)
    if known is not None and known.role is not member.role:
        raise ProtocolError(f"{member.role} {member.id!r} has the name of a {known.role}; give it another id")
    if known is not None and known.incarnation > member.incarnation:
        return state
    members = dict(state.members)
    if member.leaving:
        members.pop(member.id, None)
        left = state.left | {member.id}
    else:
        members[member.id] = member
        left = state.left - {member.id}
    state = _with_first_table(dataclasses.replace(state, members=members, left=left))
    state = _advance(with_losses(state, member.last_seen))
    return dataclasses.replace(state, stranded=stranded(state, member.last_seen))


def _advance(state: ControllerState) -> ControllerState:
    """Publish the next table once every node that is there has loaded it beside the present one. Moves that
    count on a node which is lost, or cannot load, are given up: others are found
    (cluster/controller/repair.py)."""
    if not state.pending:
        return state
    gone = state.lost | state.absent
    if (gone and count_on(gone, state)) or must_load(failing(state), state):
        return dataclasses.replace(state, pending=())
    following = state.pending[0]
    wanted = (following.epoch, following.version)
    nodes = (state.members.get(node) for node in following.nodes if node not in gone)
    if not all(node is not None and node.prepared == wanted for node in nodes):
        return state
    return dataclasses.replace(state, table=following, pending=state.pending[1:])


def _with_first_table(state: ControllerState) -> ControllerState:
    """The first table of this epoch, made when the last expected node has registered; nodes that are drained
    may be missing.

    After a restart of the controller the nodes still hold what an earlier one gave them, and tell it with
    their second sync: that placement stays, and the version goes on from the highest one seen.
    """
    nodes, drained = state.of(Role.NODE), state.orders.drained
    away = sum(name not in state.members for name in drained)
    if state.table is not None or not nodes or len(nodes) + away < state.shape.nodes:
        return state
    if any(node.table != NO_TABLE and node.known is None for node in nodes):
        return state
    seen = max(node.table[1] for node in nodes)
    everybody = sorted((cast(NodeId, node.id) for node in nodes), key=_natural)
    names = [name for name in everybody if name not in drained] or everybody
    shape = state.shape
    table = round_robin(shape.layers, shape.experts, names, state.epoch, seen + 1, shape.sparse)
    known = [node.known for node in nodes if node.known is not None and _fits(node.known, table, everybody)]
    if known:
        newest = max(known, key=lambda each: (each.epoch, each.version))
        table = dataclasses.replace(newest, epoch=state.epoch, version=seen + 1)
    return offer(state, table)


def _fits(known: PlacementTable, table: PlacementTable, nodes: Sequence[NodeId]) -> bool:
    """Whether it places the same experts as `table`, over nodes that are there."""
    experts = [[len(layer) for layer in each.replicas] for each in (known, table)]
    return set(known.nodes) <= set(nodes) and experts[0] == experts[1]


def _natural(name: str) -> tuple[str, int]:
    """node-10 after node-9."""
    stem, _, number = name.rpartition("-")
    return (stem, int(number)) if number.isdigit() else (name, 0)
