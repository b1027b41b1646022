"""What the controller knows and how it changes. Pure: values and `now` in, values out.

A role calls SYNC again and again; each call is folded into the state with `sync`, and `view` is the answer.
Members are never asked for anything: they pull, so a dead one costs nothing and a new one needs no list.

    expected nodes have registered ──► round-robin table ──► every node has loaded it ──► table is active
    moves: every node has loaded the next table beside this one ──► it is the table ──► no router uses the
        old one ──► nodes drop what the table does not give them, and load the one after
    node comes back as a new incarnation: same name, same place, nothing loaded ──► not active until it has
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, cast

from cluster.balance.load import LoadStats, merge
from cluster.balance.placement import PlacementTable, newer, round_robin
from cluster.controller.orders import Orders
from cluster.errors import ProtocolError
from cluster.types import NodeId

SUSPECTED_AFTER_S = 2.5
"""A member syncs every second; beyond two missed syncs others should stop counting on it."""

DEAD_AFTER_S = 10.0
"""Beyond this it is gone until it registers again."""

GRACE_S = 5.0
"""For so long calls wait for experts that nobody loads yet; shorter than a router waits for a silent node, so
that a call which cannot be helped fails no later for it."""

NO_TABLE = (0, 0)
"""The (epoch, version) of a member that has loaded nothing."""


class Role(StrEnum):
    NODE = "node"
    ROUTER = "router"
    GATEWAY = "gateway"


class Health(StrEnum):
    ALIVE = "alive"
    SUSPECTED = "suspected"
    DEAD = "dead"


@dataclass(frozen=True)
class Member:
    """A role as of its last sync.

    table: (epoch, version) of the table that it has loaded, NO_TABLE before the first.
    error: (class name, message) of what keeps it from getting ready, None while nothing does.
    last_seen: controller's monotonic clock, seconds.
    load: what a router has seen of the experts' load.
    prepared: (epoch, version) of the table that a node has loaded in advance.
    known: the table that it has from an earlier controller.
    lost: the nodes that a router cannot reach, with the incarnation of each that it knew.
    """

    role: Role
    id: str
    incarnation: int
    address: str
    table: tuple[int, int]
    ready: bool
    error: tuple[str, str] | None
    last_seen: float
    stats: Mapping[str, Any] = field(default_factory=dict)
    leaving: bool = False
    load: LoadStats | None = None
    prepared: tuple[int, int] = NO_TABLE
    known: PlacementTable | None = None
    lost: Mapping[str, int] = field(default_factory=dict)

    @staticmethod
    def from_wire(header: Mapping[str, Any], now: float) -> Member:
        """A SYNC header as a member seen at `now`. Raises ProtocolError if it is not one."""
        try:
            error, load = header["error"], header.get("load")
            epoch, version = header.get("prepared", NO_TABLE)
            known = header.get("known")
            return Member(
                role=Role(header["role"]),
                id=str(header["id"]),
                incarnation=int(header["incarnation"]),
                address=str(header["address"]),
                table=(int(header["epoch"]), int(header["table"])),
                ready=bool(header["ready"]),
                error=None if error is None else (str(error[0]), str(error[1])),
                last_seen=now,
                stats=dict(header["stats"]),
                leaving=bool(header.get("leaving", False)),
                load=None if load is None else LoadStats.from_wire(load),
                prepared=(int(epoch), int(version)),
                known=None if known is None else PlacementTable.from_wire(known),
                lost={str(node): int(number) for node, number in dict(header.get("lost", {})).items()},
            )
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ProtocolError(
                f"a peer sent a broken SYNC ({error!r}); are all versions the same?"
            ) from error


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
    are dead, or that a router cannot reach: nothing waits for them; one that was never there is waited for.
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


def health(member: Member, now: float) -> Health:
    silence = now - member.last_seen
    if silence > DEAD_AFTER_S:
        return Health.DEAD
    return Health.SUSPECTED if silence > SUSPECTED_AFTER_S else Health.ALIVE


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
    state = _advance(_with_losses(state, member.last_seen))
    return dataclasses.replace(state, stranded=_stranded(state, member.last_seen))


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


def _advance(state: ControllerState) -> ControllerState:
    """Publish the next table once every node that is there has loaded it beside the present one. Moves that
    count on a node which is lost are given up: others are found (cluster/controller/repair.py)."""
    if not state.pending:
        return state
    gone = state.lost | state.absent
    if gone and _count_on(gone, state):
        return dataclasses.replace(state, pending=())
    following = state.pending[0]
    wanted = (following.epoch, following.version)
    nodes = (state.members.get(node) for node in following.nodes if node not in gone)
    if not all(node is not None and node.prepared == wanted for node in nodes):
        return state
    return dataclasses.replace(state, table=following, pending=state.pending[1:])


def _stranded(state: ControllerState, now: float) -> float | None:
    if state.pending or not state.orphaned:
        return None
    return now if state.stranded is None else state.stranded


def _mending(state: ControllerState, now: float) -> bool:
    """Whether experts that nobody has any more are being loaded, or may soon be. Pending tables that leave
    them where they are would have been given up."""
    return state.orphaned and (state.stranded is None or now - state.stranded < GRACE_S)


def _count_on(gone: frozenset[NodeId], state: ControllerState) -> bool:
    """Whether the pending tables have one of `gone` load something, or leave experts to them alone. A stage
    in between is looked at when it is next."""
    assert state.table is not None, "tables are pending beside the present one"
    following, last = state.pending[0], state.pending[-1]
    if _orphans(last, gone) or _orphans(following, gone) - _orphans(state.table, gone):
        return True
    named = gone & (set(following.nodes) | set(last.nodes))
    return any(
        set(table.experts_of(node)) - set(state.table.experts_of(node))
        for node in named
        for table in (following, last)
    )


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


def _with_losses(state: ControllerState, now: float) -> ControllerState:
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
    """A router's word counts for the incarnation that it knew: a node that has started again is there."""
    member = state.members.get(node)
    if _is_gone(state, node, now):
        return True
    return member is not None and any(
        router.lost.get(node) == member.incarnation and health(router, now) is Health.ALIVE
        for router in state.of(Role.ROUTER)
    )


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
            }
            for node in state.of(Role.NODE)
        },
        "routers": {
            router.id: {
                "address": router.address,
                "incarnation": router.incarnation,
                "ready": router.ready and health(router, now) is Health.ALIVE,
            }
            for router in state.of(Role.ROUTER)
        },
        "stop": state.stopping,
        "mending": _mending(state, now),
        "hurry": state.orphaned or bool(state.pending),
        "cluster": _observed(state, now) if is_gateway else None,
    }


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
        "ready": member.ready,
        "error": None if member.error is None else list(member.error),
        "drained": member.id in state.orders.drained,
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
