"""Migration plans: at every instant memory holds and every expert has a copy; whatever can be reached is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.balance.fleet import devices_with
from cluster.balance.migration import Budget, payback, plan
from cluster.balance.problem import Placement
from cluster.errors import ConfigError, OutOfMemoryBudget
from cluster.types import ExpertId


def random_placement(rng, layers, experts, devices, spare):
    hosts = np.zeros((layers, experts, devices), bool)
    owner = rng.integers(0, devices, (layers, experts))
    np.put_along_axis(hosts, owner[:, :, None], True, axis=2)
    hosts |= rng.random(hosts.shape) < spare
    return Placement(hosts)


def case(seed, layers=2, experts=6, devices=4, slack=0.0, spare=0.2, even=True):
    """Two random placements, and memory that holds either of them and `slack` of it more."""
    rng = np.random.default_rng(seed)
    sizes = np.full((layers, experts), 10) if even else rng.integers(1, 30, (layers, experts))
    current, target = (random_placement(rng, layers, experts, devices, spare) for _ in range(2))
    held = np.maximum(current.device_bytes(sizes), target.device_bytes(sizes))
    fleet = devices_with(rng.uniform(1, 4, devices), (held * (1 + slack)).astype(int))
    return current, target, sizes, fleet


def replay(migration, current, sizes, fleet, rng, gone=()):
    """Carry out the plan, the loads of a stage ending in any order; check both promises at every instant."""
    names = list(fleet.names)
    alive = np.array([name not in gone for name in names])
    table, held = current.hosts & alive, current.hosts & alive
    complete = table.any(axis=2)
    for stage in migration.stages:
        for move in stage.loads:
            assert move.source is None or held[*slot(move.expert), names.index(move.source)]
            assert not held[*slot(move.expert), names.index(move.to)]
        for i in rng.permutation(len(stage.loads)):  # reserved when it begins; all begin together
            move = stage.loads[i]
            held[*slot(move.expert), names.index(move.to)] = True
        assert (np.einsum("led,le->d", held, sizes) <= fleet.memory).all()
        table = held.copy()
        for drop in stage.drops:
            assert held[*slot(drop.expert), names.index(drop.device)]
            table[*slot(drop.expert), names.index(drop.device)] = False
        assert (table.any(axis=2) >= complete).all()
        complete |= table.any(axis=2)
        held = table.copy()
    return table


def slot(expert):
    return expert.layer, expert.index


@settings(max_examples=150)
@given(
    seed=st.integers(0, 2**32),
    slack=st.sampled_from([0.0, 0.1, 0.5, 2.0]),
    spare=st.sampled_from([0.0, 0.2, 0.6]),
    even=st.booleans(),
    limit=st.none() | st.integers(0, 200),
)
def test_both_promises_hold_at_every_instant(seed, slack, spare, even, limit):
    current, target, sizes, fleet = case(seed, slack=slack, spare=spare, even=even)
    migration = plan(current, target, sizes, fleet, budget=Budget(bytes=limit))
    reached = replay(migration, current, sizes, fleet, np.random.default_rng(seed))
    np.testing.assert_array_equal(reached, migration.reached.hosts)
    assert limit is None or migration.bytes <= limit
    refused = [slot(each.expert) for each in migration.refused]
    changed = (reached != target.hosts).any(axis=2)
    assert {(int(a), int(b)) for a, b in np.argwhere(changed)} <= set(refused)


@settings(max_examples=50)
@given(seed=st.integers(0, 2**32), even=st.booleans())
def test_with_room_the_target_is_reached_by_the_fewest_bytes(seed, even):
    current, target, sizes, fleet = case(seed, slack=2.0, even=even)
    roomy = devices_with(fleet.speed, fleet.memory * 3)
    migration = plan(current, target, sizes, roomy)
    assert not migration.refused
    np.testing.assert_array_equal(migration.reached.hosts, target.hosts)
    new = target.hosts & ~current.hosts
    assert migration.bytes == (new * sizes[:, :, None]).sum()


@settings(max_examples=60)
@given(seed=st.integers(0, 2**32), library=st.sampled_from([0.0, 1e6]))
def test_a_device_that_vanished_is_replaced(seed, library):
    rng = np.random.default_rng(seed)
    current, wanted, sizes, fleet = case(seed, slack=0.3)
    hosts = wanted.hosts.copy()
    hosts[:, :, 0] = False
    hosts[~hosts.any(axis=2), 1] = True
    roomy = devices_with(fleet.speed, fleet.memory * 4)
    gone = {fleet.names[0]}
    migration = plan(current, Placement(hosts), sizes, roomy, budget=Budget(library=library), gone=gone)
    reached = replay(migration, current, sizes, roomy, rng, gone)
    only = current.hosts[:, :, 0] & (current.hosts.sum(axis=2) == 1)
    if library:
        np.testing.assert_array_equal(reached, hosts)
    else:
        assert {slot(each.expert) for each in migration.refused} == {
            (int(a), int(b)) for a, b in np.argwhere(only)
        }
        np.testing.assert_array_equal(migration.reached.hosts[only], current.hosts[only])


def swap(memory):
    """Two experts on two devices change places; the third device may have room."""
    current = Placement(np.array([[[1, 0, 0], [0, 1, 0]]], bool))
    target = Placement(np.array([[[0, 1, 0], [1, 0, 0]]], bool))
    return current, target, np.array([[10, 10]]), devices_with([1, 1, 1], memory)


def test_a_swap_goes_through_free_space_of_a_third_device():
    current, target, sizes, fleet = swap([10, 10, 10])
    migration = plan(current, target, sizes, fleet)
    np.testing.assert_array_equal(migration.reached.hosts, target.hosts)
    assert migration.bytes == 30
    replay(migration, current, sizes, fleet, np.random.default_rng(0))


def test_a_swap_without_room_is_refused_and_says_why():
    current, target, sizes, fleet = swap([10, 10, 9])
    migration = plan(current, target, sizes, fleet)
    np.testing.assert_array_equal(migration.reached.hosts, current.hosts)
    assert not migration.stages
    assert [each.expert for each in migration.refused] == [ExpertId(0, 0), ExpertId(0, 1)]
    assert "break the cycle" in migration.refused[0].reason


def test_a_spare_replica_makes_room_and_comes_back():
    """Experts 0 and 1 swap devices that are full; expert 2 has a copy on each."""
    current = Placement(np.array([[[1, 0], [0, 1], [1, 1]]], bool))
    target = Placement(np.array([[[0, 1], [1, 0], [1, 1]]], bool))
    sizes, fleet = np.array([[10, 10, 10]]), devices_with([1, 1], [20, 20])
    migration = plan(current, target, sizes, fleet)
    np.testing.assert_array_equal(migration.reached.hosts, target.hosts)
    assert not migration.refused
    assert migration.bytes == 30
    replay(migration, current, sizes, fleet, np.random.default_rng(0))


def test_heavy_experts_move_first_under_a_budget():
    current = Placement(np.array([[[1, 0], [1, 0], [1, 0]]], bool))
    target = Placement(np.array([[[0, 1], [0, 1], [0, 1]]], bool))
    sizes, fleet = np.array([[10, 10, 10]]), devices_with([1, 1], [30, 30])
    migration = plan(current, target, sizes, fleet, np.array([[1.0, 9.0, 5.0]]), Budget(bytes=20))
    assert [load.expert.index for stage in migration.stages for load in stage.loads] == [1, 2]
    assert [(each.expert.index, "budget" in each.reason) for each in migration.refused] == [(0, True)]


def test_the_library_is_read_where_it_is_faster_than_the_link():
    current, target, sizes, _ = swap([10, 10, 10])
    fleet = devices_with([1, 1, 1], [20, 20, 20], bandwidth=100.0)
    near = plan(current, target, sizes, fleet, budget=Budget(share=1.0, library=1000.0))
    assert {load.source for stage in near.stages for load in stage.loads} == {None}
    assert near.seconds == pytest.approx(0.01)
    far = plan(current, target, sizes, fleet, budget=Budget(share=0.5, library=10.0))
    assert None not in {load.source for stage in far.stages for load in stage.loads}
    assert far.seconds == pytest.approx(0.2)


def test_what_does_not_fit_says_by_how_much():
    current, target, sizes, _ = swap([10, 10, 10])
    with pytest.raises(OutOfMemoryBudget, match="current placement exceeds the memory of device d1 by 3 b"):
        plan(current, target, sizes, devices_with([1, 1, 1], [10, 7, 10]))


def test_nonsense_is_refused():
    current, target, sizes, fleet = swap([10, 10, 10])
    with pytest.raises(ConfigError, match="share"):
        Budget(share=0)
    with pytest.raises(ConfigError, match="cannot turn into"):
        plan(current, Placement(np.ones((1, 2, 2), bool)), sizes, fleet)
    with pytest.raises(ConfigError, match="is gone"):
        plan(current, target, sizes, fleet, gone=[fleet.names[0]])


def test_payback_compares_what_is_gained_with_what_it_costs():
    assert payback(gain=0.001, horizon=2000, cost=1.9)
    assert not payback(gain=0.001, horizon=2000, cost=2.0)
    assert not payback(gain=-1.0, horizon=2000, cost=0.0)
