"""A cluster's state as the controller sees it, with nodes that are lost and repaired; no sockets."""

from __future__ import annotations

import dataclasses

from cluster.balance.placement import PlacementTable
from cluster.config import ControllerConfig
from cluster.controller import rebalance, repair, syncing
from cluster.controller.members import NO_TABLE, Member, Role
from cluster.controller.state import ControllerState, Shape

SHAPE = Shape(nodes=3, layers=4, experts=8, sparse=(0, 1, 3), expert_bytes=100)
ONE = ControllerConfig()
TWO = ControllerConfig(min_replicas=2)


def node(name: str, now: float = 0.0, **changes) -> Member:
    fields = {"address": f"{name}:1", "table": (1, 1), "ready": True, "incarnation": 1, "error": None}
    return Member(role=Role.NODE, id=name, last_seen=now, **fields | changes)


def router(now: float = 0.0, **changes) -> Member:
    return dataclasses.replace(node("router-0", now), role=Role.ROUTER, **changes)


def serving(now: float = 0.0, **changes) -> ControllerState:
    """Three nodes with the first table, and a router that uses it."""
    state = ControllerState(epoch=1, shape=SHAPE)
    for table in (NO_TABLE, (1, 1)):
        for name in ("node-0", "node-1", "node-2"):
            state = syncing.sync(state, node(name, now, table=table, **changes))
    return syncing.sync(state, router(now))


def without(state: ControllerState, name: str, now: float = 0.0) -> ControllerState:
    """The router cannot reach `name`."""
    return syncing.sync(state, router(now, lost={name: 1}))


def loaded(state: ControllerState, now: float = 0.0) -> ControllerState:
    """Everybody who is there has loaded and uses what is to come."""
    while state.pending:
        following = state.pending[0]
        for name in set(following.nodes) - state.lost:
            wanted = (following.epoch, following.version)
            state = syncing.sync(state, node(name, now, prepared=wanted, table=wanted))
        version = (state.table.epoch, state.table.version)
        state = syncing.sync(state, router(now, table=version))
    return state


def repaired(state: ControllerState, config: ControllerConfig = ONE) -> ControllerState:
    return loaded(rebalance.begin(state, repair.propose(state, config)))


def copies(table: PlacementTable) -> set[int]:
    return {len(holders) for layer in table.replicas for holders in layer}
