"""What the controller does about nodes that are lost, without sockets and with a clock of the test's own."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from cluster.balance.load import LoadStats
from cluster.controller import answers, rebalance, repair, syncing
from cluster.controller.drain import drain
from cluster.controller.losses import GRACE_S
from cluster.controller.members import DEAD_AFTER_S, NO_TABLE, Member
from cluster.controller.orders import Orders
from cluster.controller.repair import Memory, Reason
from cluster.controller.state import ControllerState, active_version
from cluster.errors import Unavailable
from cluster.types import NodeId
from support.losses import ONE, SHAPE, TWO, copies, loaded, node, repaired, router, serving, without


def test_a_router_s_word_counts_for_the_incarnation_that_it_knew() -> None:
    state = without(serving(), "node-1")
    assert state.lost == {"node-1"}
    assert state.orphaned
    assert active_version(state) == 0
    again = syncing.sync(state, node("node-1", incarnation=2, table=NO_TABLE, ready=False))
    assert not again.lost
    assert not again.orphaned


def test_a_node_that_is_silent_for_long_or_has_left_is_lost_too() -> None:
    state = serving()
    later = syncing.sync(state, node("node-0", DEAD_AFTER_S + 1))
    assert later.lost == {"node-1", "node-2"}
    left = syncing.sync(state, node("node-2", leaving=True))
    assert left.lost == {"node-2"}
    assert not syncing.sync(left, node("node-2", incarnation=2)).lost


def test_a_node_that_came_back_and_cannot_load_is_lost() -> None:
    """Its disk is full, say: what it alone held is loaded by others instead of waited for."""
    trouble = {"table": (0, 0), "ready": False, "error": ("CannotStore", "no room")}
    state = syncing.sync(serving(), node("node-1", incarnation=2, **trouble))
    assert state.lost == {"node-1"}
    assert state.orphaned
    state = repaired(state)
    assert state.table.nodes == ("node-0", "node-2")
    well = syncing.sync(state, node("node-1", incarnation=3, table=(0, 0)))
    assert "node-1" in rebalance.widened(well, well.table).nodes


def test_a_node_that_cannot_load_the_first_table_is_waited_for() -> None:
    """The start fails by its error."""
    trouble = {"table": (0, 0), "ready": False, "error": ("CannotStore", "no room")}
    unused = syncing.sync(serving(), router(table=(0, 0)))
    assert not syncing.sync(unused, node("node-1", **trouble)).lost


def test_a_node_that_came_back_and_still_loads_is_waited_for() -> None:
    loads = node("node-1", incarnation=2, table=(0, 0), ready=False)
    assert not syncing.sync(serving(), loads).lost


def test_a_node_that_has_not_come_yet_is_not_lost() -> None:
    table = serving().table
    state = ControllerState(epoch=1, shape=SHAPE, table=table)
    state = syncing.sync(state, node("node-0"))
    assert not state.lost
    assert repair.due(Memory(), state, ONE, 0.0) is None


def test_what_nobody_holds_any_more_is_loaded_at_once_by_the_others() -> None:
    state = without(serving(), "node-1")
    assert repair.due(Memory(), state, ONE, 0.0) is Reason.orphans
    before = state.table
    state = repaired(state)
    assert state.table.nodes == ("node-0", "node-2")
    assert not state.lost
    assert active_version(state) == state.table.version
    for name in state.table.nodes:  # nothing else moves
        assert set(before.experts_of(name)) <= set(state.table.experts_of(name))
    assert copies(state.table) == {1}


def test_calls_wait_for_experts_only_while_somebody_loads_them() -> None:
    def waits(state: ControllerState, now: float) -> bool:
        return answers.view(state, "router-0", now)["mending"]

    state = serving()
    assert not waits(state, 0.0)
    state = without(state, "node-1", 1.0)
    assert waits(state, 1.0)  # there may be a way
    state = without(state, "node-1", 1.0 + GRACE_S)
    assert not waits(state, 1.1 + GRACE_S)
    loading = rebalance.begin(state, repair.propose(state))
    loading = without(loading, "node-1", 9.0)
    assert waits(loading, 9.0)
    left = syncing.sync(loading, node("node-0", 9.5, leaving=True))
    assert not left.pending
    assert waits(left, 9.5)  # others may be found
    assert not waits(left, 9.6 + GRACE_S)
    assert not waits(loaded(loading, 9.0), 9.0)


def test_they_are_loaded_even_where_memory_is_short() -> None:
    state = without(serving(stats={"memory_bytes": 800}), "node-1")
    assert repaired(state).table.nodes == ("node-0", "node-2")


def test_moves_that_counted_on_a_lost_node_are_given_up() -> None:
    state = serving()
    drained, proposal = drain(state, NodeId("node-2"))
    state = rebalance.begin(drained, proposal)
    assert state.pending
    state = without(state, "node-1")
    assert not state.pending
    state = repaired(state)
    assert state.table.nodes == ("node-0",)  # the drain has been carried on
    assert len(state.table.experts_of(NodeId("node-0"))) == 24


def beside(spare: Member, now: float) -> ControllerState:
    """Three nodes serve at `now`; `spare`, outside their table, has not been heard of since it came."""
    state = syncing.sync(serving(), spare)
    for member in (node("node-0", now), node("node-1", now), node("node-2", now), router(now)):
        state = syncing.sync(state, member)
    return state


def test_orphans_are_not_given_to_a_spare_that_is_dead() -> None:
    """It is the emptiest of all, and said that it was ready the last time that it was heard."""
    now = DEAD_AFTER_S + 1
    state = without(beside(node("node-3"), now), "node-1", now)
    assert rebalance.widened(state, state.table, trusting=True).nodes == ("node-0", "node-1", "node-2")
    proposal = repair.propose(state)
    assert {name for table in proposal.tables for name in table.nodes} == {"node-0", "node-2"}
    back = syncing.sync(state, node("node-3", now, incarnation=2))
    assert "node-3" in rebalance.widened(back, back.table).nodes


def test_moves_that_count_on_a_newcomer_end_with_it() -> None:
    state = syncing.sync(serving(), node("node-3"))
    state = without(state, "node-1")
    state = rebalance.begin(state, repair.propose(state))
    assert "node-3" in state.pending[-1].nodes
    gone = syncing.sync(state, node("node-3", leaving=True))
    assert not gone.pending
    later = DEAD_AFTER_S + 1
    for member in (node("node-0", later), node("node-2", later), router(later, lost={"node-1": 1})):
        state = syncing.sync(state, member)
    assert not state.pending
    assert repair.due(Memory(), state, ONE, later) is Reason.orphans
    assert repaired(state).table.nodes == ("node-0", "node-2")


def test_moves_to_a_node_that_cannot_load_are_given_up_and_go_elsewhere() -> None:
    full = ("CannotStore", "no room")
    state = without(serving(), "node-1")
    state = rebalance.begin(state, repair.propose(state))
    assert {"node-0", "node-2"} <= set(state.pending[-1].nodes)
    state = syncing.sync(state, node("node-0", error=full))
    assert not state.pending
    again = repair.propose(state)
    before = set(state.table.experts_of(NodeId("node-0")))
    assert set(again.tables[-1].experts_of(NodeId("node-0"))) == before
    state = syncing.sync(rebalance.begin(state, again), node("node-0", error=full))
    assert state.pending
    state = syncing.sync(state, node("node-2", error=full))
    with pytest.raises(Unavailable, match="no node is left"):
        repair.propose(state)
    assert repair.propose(syncing.sync(state, node("node-2"))).tables


def test_a_node_that_came_back_and_died_again_is_not_back() -> None:
    state = without(serving(), "node-1")
    memory = repair.remember(Memory(), state, 0.0)
    state = syncing.sync(repaired(state), node("node-1", incarnation=2))
    memory = repair.remember(memory, state, 1.0)
    assert memory.back == {"node-1": 1.0}
    later = DEAD_AFTER_S + 1
    for member in (node("node-0", later, table=(1, 2)), node("node-2", later, table=(1, 2))):
        state = syncing.sync(state, member)
    assert not repair.remember(memory, state, later).back
    assert "node-1" not in rebalance.widened(state, state.table).nodes


def skewed() -> LoadStats:
    """Some experts are asked for far more often than others."""
    rows = np.zeros((4, 8))
    rows[[0, 1, 3]] = np.random.default_rng(0).permuted(
        np.tile(40.0 / np.arange(1, 9) ** 1.2, (3, 1)), axis=1
    )
    return LoadStats(256.0, 1.0, 20.0, 20.0, rows, rows.sum(axis=1))


def tight() -> ControllerState:
    """Two copies of everything, in memories that have next to no room, and node-1 is lost."""
    state = repaired(serving(), TWO)
    for name in ("node-0", "node-1", "node-2"):
        state = syncing.sync(state, node(name, table=(1, 2), stats={"memory_bytes": 1700}))
    return syncing.sync(state, router(table=(1, 2), lost={"node-1": 1}))


def test_moves_in_several_stages_go_on_beside_a_lost_node() -> None:
    state = tight()
    proposal = rebalance.propose(state, ONE, skewed())
    assert len(proposal.tables) > 1
    assert {name for table in proposal.tables for name in table.nodes} == {"node-0", "node-2"}
    state = syncing.sync(rebalance.begin(state, proposal), node("node-0", table=(1, 2)))
    assert state.pending == proposal.tables
    assert loaded(state).table == proposal.tables[-1]


def test_moves_that_ask_nothing_of_a_lost_node_do_not_wait_for_it() -> None:
    """They were planned before the loss, so that it is in their tables."""
    state = tight()
    table = dataclasses.replace(state.table, version=3)
    assert "node-1" in table.nodes
    state = dataclasses.replace(state, pending=(table,))
    assert loaded(state).table == table


def test_the_last_copy_is_not_dropped_for_one_on_a_lost_node() -> None:
    """Neither by the next table, nor by one that would have to be mended afterwards."""
    state = tight()
    place = state.table.nodes.index(NodeId("node-1"))
    alone = next(holders for layer in state.table.replicas for holders in layer if place in holders)
    table = dataclasses.replace(
        state.table,
        version=3,
        replicas=tuple(
            tuple((place,) if holders == alone else holders for holders in layer)
            for layer in state.table.replicas
        ),
    )
    mended = dataclasses.replace(state.table, version=4)
    for pending in ((table,), (table, mended), (dataclasses.replace(state.table, version=3), table)):
        planned = dataclasses.replace(state, pending=pending)
        assert not syncing.sync(planned, node("node-0", table=(1, 2))).pending


def test_a_dead_node_does_not_hold_up_moves() -> None:
    """Every expert has a copy elsewhere: nobody waits for it, nor for a drain beside it."""
    state = repaired(serving(), TWO)
    assert copies(state.table) == {2}
    state = without(state, "node-1")
    assert not state.orphaned
    assert active_version(state) == state.table.version
    state, proposal = drain(state, NodeId("node-2"))
    assert all("node-1" not in table.nodes for table in proposal.tables[-1:])
    state = loaded(rebalance.begin(state, proposal))
    assert state.table.nodes == ("node-0",)


def test_a_lost_node_that_is_in_no_table_any_more_gets_nothing() -> None:
    """Its last sync may be younger than its loss."""
    state = repaired(without(serving(), "node-1"))
    assert not state.lost
    state = syncing.sync(state, router(0.1, table=(1, 2), lost={"node-2": 1}))
    assert repaired(state).table.nodes == ("node-0",)
    assert rebalance.widened(state, state.table).nodes == ("node-0", "node-2")
    follows = syncing.sync(state, node("node-1", table=(1, 2)))
    assert rebalance.widened(follows, follows.table).nodes == ("node-0", "node-2")
    assert "node-1" in rebalance.widened(follows, follows.table, trusting=True).nodes
    again = syncing.sync(state, node("node-1", incarnation=2, table=(1, 2)))
    assert "node-1" in rebalance.widened(again, again.table).nodes


def test_a_lost_node_leaves_the_table_though_nothing_needs_to_be_loaded() -> None:
    state = without(repaired(serving(), TWO), "node-0")
    proposal = repair.propose(state, ONE)
    assert proposal.decision.migration.bytes == 0
    (table,) = proposal.tables
    assert table.nodes == ("node-1", "node-2")


def test_nothing_is_repaired_while_tables_are_on_their_way() -> None:
    state = serving()
    state = rebalance.begin(state, repair.propose(state, TWO))
    assert repair.due(Memory(), state, TWO, 0.0) is None


def test_a_node_that_is_back_gets_experts_again_later_with_every_loss() -> None:
    state = without(serving(), "node-1", 0.0)
    memory = repair.remember(Memory(), state, 0.0)
    state = repaired(state)
    waits = []
    for loss in range(1, 9):
        now = 1000.0 * loss
        state = syncing.sync(state, node("node-1", 0.0, incarnation=loss + 1))
        memory = dataclasses.replace(memory, losses={NodeId("node-1"): (loss, loss)}, back={})
        memory = repair.remember(memory, state, now)
        waits.append(next(s for s in range(1000) if repair.due(memory, state, ONE, now + s)))
        assert repair.due(memory, state, ONE, now + waits[-1]) is Reason.back
    assert waits == [5, 10, 20, 40, 80, 160, 300, 300]
    after = repair.given_back(memory)
    assert not after.back
    assert not repair.remember(after, state, 9000.0).back  # it has had its turn
    assert after.losses[NodeId("node-1")][0] == 8  # and no forgiveness


def test_a_process_that_was_only_cut_off_is_not_tried_by_itself() -> None:
    state = without(serving(), "node-1")
    memory = repair.remember(Memory(), state, 0.0)
    state = syncing.sync(repaired(state), node("node-1"))
    assert not repair.remember(memory, state, 1000.0).back
    state = syncing.sync(state, node("node-1", incarnation=2))
    assert repair.remember(memory, state, 1000.0).back == {"node-1": 1000.0}


def test_a_drained_node_that_is_back_stays_empty() -> None:
    state = repaired(without(serving(), "node-1"))
    state = syncing.sync(state, node("node-1", incarnation=2))
    memory = Memory(losses={NodeId("node-1"): (1, 1)}, back={NodeId("node-1"): 0.0})
    state = dataclasses.replace(state, orders=Orders(drained=frozenset({NodeId("node-1")})))
    assert repair.due(memory, state, ONE, 900.0) is None


def test_where_nobody_is_left_that_is_said() -> None:
    state = serving()
    for name in ("node-0", "node-1", "node-2"):
        state = syncing.sync(state, node(name, leaving=True))
    with pytest.raises(Unavailable, match="no node is left"):
        repair.propose(state)
    with pytest.raises(Unavailable, match="no table"):
        repair.propose(ControllerState(epoch=1, shape=SHAPE))
