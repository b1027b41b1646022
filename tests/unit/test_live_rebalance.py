"""From load to tables, and how members follow them: every copy that a router may ask for is there."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.balance.load import LoadStats, NodeLoad
from cluster.balance.placement import PlacementTable
from cluster.controller import answers, rebalance, syncing
from cluster.controller.members import DEAD_AFTER_S, NO_TABLE, Member, Role
from cluster.controller.state import ControllerState, Shape, offer, settled
from cluster.errors import OutOfMemoryBudget, Unavailable
from cluster.types import ExpertId, NodeId

SHAPE = Shape(nodes=3, layers=3, experts=8, sparse=(0, 2), expert_bytes=100)
NODES = tuple(NodeId(f"node-{i}") for i in range(3))


def member(name: str, role: Role, now: float = 0.0, **changes) -> Member:
    fields = {"table": NO_TABLE, "ready": True, "error": None, "address": "", "incarnation": 1}
    return Member(role=role, id=name, last_seen=now, **fields | changes)


def skewed(seed: int = 0, speeds: tuple[float, ...] = (4.0, 2.0, 1.0)) -> LoadStats:
    rng = np.random.default_rng(seed)
    rows = np.zeros((3, 8))
    rows[[0, 2]] = rng.permuted(np.tile(40.0 / np.arange(1, 9) ** 1.2, (2, 1)), axis=1)
    nodes = {name: NodeLoad(1, speed, 1, 1e-3) for name, speed in zip(NODES, speeds, strict=True)}
    return LoadStats(256.0, 1.0, 20.0, 20.0, rows, (rows > 0).sum(axis=1).astype(float), nodes)


def ready(load: LoadStats | None = None, memory: int = 800, routers: int = 1) -> ControllerState:
    """Nodes have loaded the first table, routers use it."""
    state = ControllerState(epoch=1, shape=SHAPE)
    for _ in range(2):
        for name in NODES:
            table = NO_TABLE if state.table is None else (1, state.table.version)
            one = member(name, Role.NODE, table=table, stats={"memory_bytes": memory})
            state = syncing.sync(state, one)
    for number in range(routers):
        one = member(f"router-{number}", Role.ROUTER, table=(1, 1), load=load if number == 0 else None)
        state = syncing.sync(state, one)
    return state


def test_a_skewed_load_gets_copies_of_what_is_hot_within_memory() -> None:
    state = ready(skewed())
    proposal = rebalance.propose(state)
    reached = proposal.decision.migration.reached
    assert proposal.decision.gain > 0
    assert (reached.hosts.sum(axis=2) > 1).any()
    assert (reached.device_bytes(proposal.problem.expert_bytes) <= 800).all()
    assert [table.version for table in proposal.tables] == list(range(2, 2 + len(proposal.tables)))
    told = rebalance.describe(proposal)
    assert told["then"]["step_s"] < told["now"]["step_s"]
    assert told["now"]["bound_s"] <= told["then"]["step_s"]
    assert told["bytes"] == 100 * sum(len(stage["loads"]) for stage in told["stages"])


def test_a_node_without_a_limit_takes_a_little_more_than_its_share() -> None:
    problem = rebalance.propose(ready(skewed(), memory=0)).problem
    assert (problem.devices.memory == int(1.25 * 1600 / 3)).all()


def test_a_node_that_cannot_load_keeps_what_it_has_and_gets_nothing_more() -> None:
    fast = NODES[0]
    state = ready(skewed())
    assert set(rebalance.propose(state).tables[-1].experts_of(fast)) - set(state.table.experts_of(fast))
    full = ("LibraryError", "the disk is full")
    stuck = {"table": (1, 1), "error": full, "stats": {"memory_bytes": 800}}
    state = syncing.sync(state, member(fast, Role.NODE, **stuck))
    tables = rebalance.propose(state).tables
    assert tables
    assert all(set(each.experts_of(fast)) <= set(state.table.experts_of(fast)) for each in tables)
    for table in tables:
        assert all(len(table.replicas[layer]) == SHAPE.experts for layer in SHAPE.sparse)
    for name in NODES[1:]:
        state = syncing.sync(state, member(name, Role.NODE, **stuck))
    with pytest.raises(Unavailable, match="no node is left that could load"):
        rebalance.propose(state)


def test_what_is_missing_is_said() -> None:
    with pytest.raises(Unavailable, match="not all nodes are there"):
        rebalance.propose(ControllerState(epoch=1, shape=SHAPE))
    with pytest.raises(Unavailable, match="no router has computed anything"):
        rebalance.propose(ready())
    with pytest.raises(OutOfMemoryBudget, match="needs 100 bytes more"):
        rebalance.propose(ready(skewed(), memory=500))
    state = ready(skewed())
    proposal = rebalance.propose(state)
    moving = rebalance.begin(state, proposal)
    with pytest.raises(Unavailable, match="experts are being moved"):
        rebalance.propose(moving)
    changed = dataclasses.replace(state, table=dataclasses.replace(state.table, version=7))
    with pytest.raises(Unavailable, match="changed meanwhile"):
        rebalance.begin(changed, proposal)


def test_status_tells_copies_and_shares() -> None:
    state = ready(skewed(speeds=(5.0, 3.0, 2.0)))
    told = answers.status(state, 0.0)
    assert told["replicated"] == 0
    shares = {one["id"]: one["share"] for one in told["members"]}
    assert shares == {"node-0": 0.5, "node-1": 0.3, "node-2": 0.2, "router-0": None}
    proposal = rebalance.propose(state)
    told = answers.status(offer(state, proposal.tables[-1]), 0.0)
    hosts = proposal.decision.migration.reached.hosts
    assert told["replicated"] == np.count_nonzero(hosts.sum(axis=2) > 1)


class Node:
    """Does what cluster/fleet/roles/node.py does with a view, one table at a time."""

    def __init__(self, name: NodeId, table: PlacementTable) -> None:
        self.name, self.table, self.prepared = name, table, NO_TABLE
        self.held = set(table.experts_of(name))

    def follow(self, view: dict) -> None:
        if view["table"] is not None:
            self.table = PlacementTable.from_wire(view["table"])
        mine, wanted = set(self.table.experts_of(self.name)), set()
        assert mine <= self.held, "a table was published that nobody had prepared"
        if view["next"] is not None:
            following = PlacementTable.from_wire(view["next"])
            wanted = set(following.experts_of(self.name))
            self.prepared = (following.epoch, following.version)
        if view["settled"]:
            self.held = mine | wanted

    def report(self, now: float) -> Member:
        table = (self.table.epoch, self.table.version)
        stats = {"memory_bytes": 800}
        return member(self.name, Role.NODE, now, table=table, prepared=self.prepared, stats=stats)


class Router:
    """Uses a table for a while after it has been told of a newer one."""

    def __init__(self, name: str, table: PlacementTable) -> None:
        self.name, self.used, self.told = name, table, table

    def follow(self, view: dict) -> None:
        self.used = self.told
        if view["table"] is not None:
            self.told = PlacementTable.from_wire(view["table"])

    def report(self, now: float) -> Member:
        return member(self.name, Role.ROUTER, now, table=(self.used.epoch, self.used.version))


@settings(max_examples=40)
@given(seed=st.integers(0, 2**31), memory=st.sampled_from([600, 700, 800]))
def test_whoever_syncs_when_every_copy_that_is_named_is_held(seed: int, memory: int) -> None:
    rng = np.random.default_rng(seed)
    state = ready(skewed(seed), memory, routers=2)
    proposal = rebalance.propose(state)
    state = rebalance.begin(state, proposal)
    nodes = [Node(name, state.table) for name in NODES]
    members = [*nodes, *(Router(f"router-{i}", state.table) for i in range(2))]
    target = proposal.tables[-1] if proposal.tables else state.table
    for turn in range(1000):
        one = members[rng.integers(len(members))]
        now = turn * 0.01
        report = one.report(now)
        state = syncing.sync(state, report)
        one.follow(answers.view(state, report.id, now))
        for router in members[3:]:
            for node in nodes:
                assert node.held >= set(router.used.experts_of(node.name))
        for node in nodes:
            assert 100 * len(node.held) <= memory
        if state.table is target and all(n.held == set(target.experts_of(n.name)) for n in nodes):
            break
    assert state.table == target
    assert not state.pending
    everything = {ExpertId(layer, e) for layer in SHAPE.sparse for e in range(SHAPE.experts)}
    assert set().union(*(node.held for node in nodes)) == everything


def test_a_table_waits_for_a_node_that_has_restarted() -> None:
    state = ready(skewed())
    proposal = rebalance.propose(state)
    state = rebalance.begin(state, proposal)
    first = (1, proposal.tables[0].version)
    for name in NODES[:2]:
        state = syncing.sync(state, member(name, Role.NODE, table=(1, 1), prepared=first))
    state = syncing.sync(state, member(NODES[0], Role.NODE, incarnation=2))
    state = syncing.sync(state, member(NODES[2], Role.NODE, table=(1, 1), prepared=first))
    assert state.table.version == 1
    state = syncing.sync(state, member(NODES[0], Role.NODE, incarnation=2, table=(1, 1), prepared=first))
    assert state.table.version == 2


def test_a_silent_router_keeps_old_copies_until_its_lease_has_run_out() -> None:
    state = ready(skewed())
    state = offer(state, dataclasses.replace(state.table, version=2))
    assert not settled(state, 1.0)
    assert settled(state, DEAD_AFTER_S + 1.0)
    assert settled(syncing.sync(state, member("router-0", Role.ROUTER, table=(1, 2))), 1.0)
