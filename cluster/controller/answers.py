"""What the controller tells others of what it knows: members, gateways, operators. Pure."""

from __future__ import annotations

from typing import Any

from cluster import __version__
from cluster.balance.load import LoadStats
from cluster.balance.placement import PlacementTable
from cluster.controller.losses import mending
from cluster.controller.members import Health, Member, Role, health
from cluster.controller.state import ControllerState, active_version, load_of, settled
from cluster.types import NodeId


def view(state: ControllerState, member_id: str, now: float) -> dict[str, Any]:
    """The answer to a SYNC of `member_id` (header of STATE). The table is left out if the member has it."""
    member = state.members.get(member_id)
    current = (
        state.table is not None
        and member is not None
        and member.table == (state.table.epoch, state.table.version)
    )
    is_node = member is not None and member.role is Role.NODE
    is_gateway = member is not None and member.role is Role.GATEWAY
    return {
        "epoch": state.epoch,
        "table": None if state.table is None or current else state.table.to_wire(),
        "active": active_version(state),
        "settled": (calm := settled(state, now)),
        "next": state.pending[0].to_wire() if calm and state.pending and is_node else None,
        "nodes": {
            node.id: {
                "address": node.address,
                "incarnation": node.incarnation,
                "alive": health(node, now) is Health.ALIVE,
                **(_blobs(node) if is_node else {}),
            }
            for node in state.of(Role.NODE)
        },
        "routers": {
            router.id: {
                "address": router.address,
                "incarnation": router.incarnation,
                "ready": router.ready and health(router, now) is Health.ALIVE,
                "late": router.ready and health(router, now) is Health.SUSPECTED,
            }
            for router in state.of(Role.ROUTER)
        },
        "stop": state.stopping,
        "mending": mending(state, now),
        "hurry": state.orphaned or bool(state.pending),
        "cluster": _observed(state, now) if is_gateway else None,
    }


def _blobs(node: Member) -> dict[str, Any]:
    """Where others may get blobs from it, and whether it has all of them on disk."""
    told = node.stats.get("blobs") or {}
    return {"blobs": str(told.get("address", "")), "complete": bool(told.get("complete", False))}


def _observed(state: ControllerState, now: float) -> dict[str, Any]:
    """What gateways publish as metrics: everybody's counts, and the load that all routers saw."""
    load = load_of(state)
    return {
        "members": [
            {
                "id": member.id,
                "role": member.role.value,
                "health": health(member, now).value,
                "stats": dict(member.stats),
                **_standing(state, member),
            }
            for member in state.members.values()
        ],
        "load": None if load is None else load.to_wire(),
        "tiers": list(state.orders.tiers),
        **_progress(state, now),
    }


def _progress(state: ControllerState, now: float) -> dict[str, Any]:
    """Which table is in use, and how far the way to the last one is."""
    return {
        "epoch": state.epoch,
        "version": state.table.version if state.table else 0,
        "active": active_version(state),
        "pending": len(state.pending),
        "settled": settled(state, now),
    }


def _standing(state: ControllerState, member: Member) -> dict[str, Any]:
    """What a member may do and has to. experts: those that the table gives it."""
    table = state.table
    return {
        "address": member.address,
        "incarnation": member.incarnation,
        "software": member.software,
        "protocol": member.protocol,
        "ready": member.ready,
        "error": None if member.error is None else list(member.error),
        "drained": member.id in state.orders.drained,
        "for_upgrade": member.id in state.orders.for_upgrade,
        "experts": len(table.experts_of(NodeId(member.id))) if table else 0,
    }


def detail(state: ControllerState) -> dict[str, Any]:
    """What a STATUS that asks for it gets besides: the table and the load that all routers see, as on the
    wire; None before there is one."""
    load = load_of(state)
    return {
        "table": None if state.table is None else state.table.to_wire(),
        "load": None if load is None else load.to_wire(),
    }


def status(state: ControllerState, now: float) -> dict[str, Any]:
    """Everything an operator may ask (header of the answer to STATUS)."""
    table = state.table
    shares = _shares(load_of(state))
    return {
        **_progress(state, now),
        "software": __version__,
        "replicated": _replicated(table),
        "tiers": list(state.orders.tiers),
        "expected_nodes": state.shape.nodes,
        "members": [
            {
                "role": member.role.value,
                "id": member.id,
                "table": member.table[1],
                "health": health(member, now).value,
                **_standing(state, member),
                "share": shares.get(member.id),
                "stats": dict(member.stats),
            }
            for member in sorted(state.members.values(), key=lambda m: (list(Role).index(m.role), m.id))
        ],
    }


def _replicated(table: PlacementTable | None) -> int:
    """Experts that have more than one copy."""
    return sum(len(holders) > 1 for layer in table.replicas for holders in layer) if table else 0


def _shares(load: LoadStats | None) -> dict[str, float]:
    """Each node's part of the rows that were computed of late."""
    rows = {} if load is None else {str(name): node.rows for name, node in load.nodes.items()}
    total = sum(rows.values())
    return {name: count / total for name, count in rows.items()} if total else {}
