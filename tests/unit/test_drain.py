"""A drained node loses its experts by safe steps and gets none back; what does not fit is said."""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.balance.load import LoadStats, NodeLoad
from cluster.balance.placement import PlacementTable
from cluster.config import ControllerConfig
from cluster.controller import answers, rebalance, repair, syncing
from cluster.controller.drain import drain, fill, order, undrain
from cluster.controller.members import NO_TABLE, Member, Role
from cluster.controller.orders import Orders
from cluster.controller.state import ControllerState, Shape
from cluster.errors import ConfigError, OutOfMemoryBudget, Unavailable, UnknownNode
from cluster.types import TIERS, NodeId

SHAPE = Shape(nodes=3, layers=3, experts=8, sparse=(0, 2), expert_bytes=100)
NODES = tuple(NodeId(f"node-{i}") for i in range(3))
COPIES = 16
LAST = NODES[2]


def member(name: str, role: Role, **changes) -> Member:
    fields = {"table": NO_TABLE, "ready": True, "error": None, "address": "", "incarnation": 1}
    return Member(role=role, id=name, last_seen=0.0, **fields | changes)


def load(seed: int) -> LoadStats:
    rows = np.zeros((3, 8))
    rows[[0, 2]] = np.random.default_rng(seed).gamma(0.5, 10.0, (2, 8))
    nodes = {name: NodeLoad(1, speed, 1, 1e-3) for name, speed in zip(NODES, (4.0, 2.0, 1.0), strict=True)}
    return LoadStats(256.0, 1.0, 20.0, 20.0, rows, (rows > 0).sum(axis=1).astype(float), nodes)


def with_table(
    table: PlacementTable | None, memory: int, seen: LoadStats | None = None, orders: Orders | None = None
) -> ControllerState:
    """All nodes have loaded `table` (the first one if None), and a router uses it."""
    state = ControllerState(epoch=1, shape=SHAPE, table=table, orders=orders or Orders())
    for _ in range(2):
        for name in NODES:
            loaded = NO_TABLE if state.table is None else (1, state.table.version)
            one = member(name, Role.NODE, table=loaded, stats={"memory_bytes": memory})
            state = syncing.sync(state, one)
    assert state.table is not None
    return syncing.sync(state, member("router-0", Role.ROUTER, table=(1, state.table.version), load=seen))


def carried_out(state: ControllerState, proposal: rebalance.Proposal) -> ControllerState:
    """As if every member had followed table after table."""
    for table in proposal.tables:
        check_complete(table)
    table = proposal.tables[-1] if proposal.tables else state.table
    return dataclasses.replace(state, table=table)


def check_complete(table: PlacementTable) -> None:
    assert all(len(table.replicas[layer]) == SHAPE.experts for layer in SHAPE.sparse)


@settings(max_examples=30)
@given(seed=st.integers(0, 2**31), memory=st.sampled_from([0, 800, 900, 1600]), gone=st.sampled_from(NODES))
def test_the_node_is_emptied_and_leaves_the_table(seed: int, memory: int, gone: NodeId) -> None:
    state = with_table(None, memory, load(seed))
    drained, proposal = drain(state, gone)
    assert proposal.tables
    for before, after in zip((state.table, *proposal.tables), proposal.tables, strict=False):
        check_complete(after)
        for node in NODES:
            both = {*before.experts_of(node), *after.experts_of(node)}
            assert memory == 0 or 100 * len(both) <= max(memory, 100 * len(before.experts_of(node)))
    assert set(proposal.tables[-1].nodes) == set(NODES) - {gone}
    assert drained.orders.drained == {gone}
    # Nor does it get any back while it is drained.
    after = carried_out(drained, proposal)
    again = rebalance.propose(after, load=load(seed + 1))
    for table in again.tables:
        assert gone not in table.nodes


def test_without_load_all_experts_count_alike() -> None:
    _, proposal = drain(with_table(None, 0), LAST)
    held = [len(proposal.tables[-1].experts_of(node)) for node in NODES]
    assert held == [8, 8, 0]


def test_no_more_moves_than_has_to() -> None:
    state = with_table(None, 0, load(3))
    mine = len(state.table.experts_of(LAST))
    _, proposal = drain(state, LAST)
    assert proposal.decision.migration.bytes == 100 * mine


def test_what_does_not_fit_is_refused_in_bytes() -> None:
    state = with_table(None, 750)  # seven whole experts each
    with pytest.raises(OutOfMemoryBudget, match=r"node-2 cannot be drained: .* lack 200 bytes"):
        drain(state, LAST)
    drained, proposal = drain(with_table(None, 800), LAST)
    with pytest.raises(OutOfMemoryBudget, match=r"node-1 cannot be drained: .* lack 800 bytes"):
        drain(carried_out(drained, proposal), NODES[1])


def test_all_nodes_but_one_can_be_drained_and_come_back() -> None:
    state = with_table(None, 1600)
    for node in NODES[1:]:
        state = carried_out(*drain(state, node))
    assert state.table.nodes == NODES[:1]
    with pytest.raises(OutOfMemoryBudget, match=f"lack {100 * COPIES} bytes"):
        drain(state, NODES[0])
    for node in NODES[1:]:
        state = undrain(state, node)
    proposal = rebalance.propose(state, load=load(0))
    assert set(proposal.tables[-1].nodes) == set(NODES)


@pytest.mark.parametrize("seen", [None, load(0)])
def test_a_node_that_is_back_gets_its_share_though_others_hold_all_that_is_needed(
    seen: LoadStats | None,
) -> None:
    two = ControllerConfig(min_replicas=2)
    state = carried_out(*drain(with_table(None, 1600, seen), LAST))
    state = undrain(carried_out(state, repair.propose(state, two)), LAST)
    assert [len(state.table.experts_of(node)) for node in NODES] == [COPIES, COPIES, 0]
    proposal = fill(state, two)
    filled = carried_out(state, proposal).table
    assert len(filled.experts_of(LAST)) >= (2 if seen else COPIES // 4)  # it is the slowest one, where any is
    assert all(len(holders) >= 2 for layer in filled.replicas for holders in layer)
    with pytest.raises(Unavailable, match="being moved"):
        fill(rebalance.begin(state, proposal), ControllerConfig())


def test_a_node_that_holds_nothing_has_nothing_to_move() -> None:
    state = carried_out(*drain(with_table(None, 0), LAST))
    again, proposal = drain(state, LAST)
    assert proposal.tables == ()
    assert again.orders == state.orders


def test_a_node_that_the_table_names_for_nothing_leaves_it() -> None:
    state = with_table(None, 0)
    held = carried_out(*drain(state, LAST)).table
    named = dataclasses.replace(held, nodes=NODES)
    _, proposal = drain(dataclasses.replace(state, table=named), LAST)
    assert [(table.nodes, table.version) for table in proposal.tables] == [(NODES[:2], named.version + 1)]


def test_what_cannot_be_drained_is_said() -> None:
    state = with_table(None, 800)
    with pytest.raises(UnknownNode, match=r"no expert node 'router-0'; there is node-0, node-1, node-2"):
        drain(state, NodeId("router-0"))
    with pytest.raises(UnknownNode):
        undrain(state, NodeId("node-9"))
    moving = rebalance.begin(*drain(state, LAST))
    with pytest.raises(Unavailable, match="being moved"):
        drain(moving, NODES[0])


def test_a_restarted_controller_does_not_wait_for_a_drained_node_that_has_gone() -> None:
    settled = carried_out(*drain(with_table(None, 0), LAST))
    known = dataclasses.replace(settled.table, version=9)
    state = ControllerState(epoch=2, shape=SHAPE, orders=settled.orders)
    here = [member(name, Role.NODE, table=(1, 9), known=known) for name in NODES[:2]]
    state = functools.reduce(syncing.sync, here, state)
    assert state.table == dataclasses.replace(known, epoch=2, version=10)
    empty = functools.reduce(
        syncing.sync,
        [member(name, Role.NODE) for name in NODES],
        ControllerState(epoch=2, shape=SHAPE, orders=settled.orders),
    )
    assert empty.table.nodes == NODES[:2]


def test_status_and_gateways_are_told() -> None:
    state = carried_out(*drain(with_table(None, 0), LAST))
    told = {one["id"]: one for one in answers.status(state, 0.0)["members"]}
    assert [told[name]["drained"] for name in NODES] == [False, False, True]
    assert told[LAST]["experts"] == 0
    gateway = member("gateway", Role.GATEWAY)
    seen = answers.view(syncing.sync(state, gateway), "gateway", 0.0)["cluster"]
    assert seen["tiers"] == ["exact"]
    assert {one["id"] for one in seen["members"] if one["drained"]} == {LAST}


def test_what_an_upgrade_has_drained_is_the_operators_once_one_drains_it() -> None:
    ours = Orders().draining(LAST, for_upgrade=True)
    assert (ours.drained, ours.for_upgrade, ours.of_operators.drained) == ({LAST}, {LAST}, frozenset())
    assert ours.draining(LAST, for_upgrade=True) == ours
    theirs = ours.draining(LAST)
    assert theirs == Orders(frozenset({LAST})) == theirs.draining(LAST, for_upgrade=True)
    assert ours.undraining(LAST) == theirs.undraining(LAST) == Orders()


def test_an_upgrade_gives_back_only_what_it_has_drained() -> None:
    ours, _ = drain(with_table(None, 0), LAST, for_upgrade=True)
    told = {one["id"]: one["for_upgrade"] for one in answers.status(ours, 0.0)["members"]}
    assert [name for name in NODES if told[name]] == [LAST]
    assert undrain(ours, LAST, for_upgrade=True).orders == Orders()
    theirs, _ = drain(with_table(None, 0), LAST)
    assert undrain(theirs, LAST, for_upgrade=True) is theirs
    nobodys = with_table(None, 0)
    assert undrain(nobodys, LAST, for_upgrade=True) is nobodys
    assert undrain(theirs, LAST).orders == Orders()


def test_orders_follow_what_operators_have_changed_elsewhere() -> None:
    first, second, third = NODES
    before = Orders(frozenset({first}), ("a", "b"))
    since = Orders(frozenset({second, third}), ("a",), frozenset({third}))
    assert before.following(before, before) == before
    assert before.following(before, since) == Orders(frozenset({second}), ("a",))
    own = Orders(frozenset({first, third}), ("b",))
    assert own.following(before, before) == own
    assert own.following(before, since) == Orders(frozenset({second, third}), ("a",))


def test_a_drain_may_be_ordered_for_when_moves_are_possible() -> None:
    moving = rebalance.begin(*drain(with_table(None, 0), LAST))
    assert order(moving, NODES[0]).orders.drained == {LAST, NODES[0]}
    with pytest.raises(UnknownNode):
        order(moving, NodeId("nobody"))


def test_orders_survive_as_text() -> None:
    orders = Orders(frozenset({LAST, NODES[0]}), ("exact",), frozenset({LAST}))
    assert Orders.from_text(orders.to_text()) == orders
    assert Orders.from_text('{"drained": [], "tiers": ["gone"]}') == Orders(tiers=TIERS)
    with pytest.raises(ConfigError, match="cannot be read"):
        Orders.from_text("{")


def test_only_tiers_that_there_are_are_offered() -> None:
    assert Orders().offering(["exact"]).tiers == ("exact",)
    with pytest.raises(ConfigError, match="no tier 'lowbit'"):
        Orders().offering(["exact", "lowbit"])
    with pytest.raises(ConfigError, match="no tier would be offered"):
        Orders().offering([])
