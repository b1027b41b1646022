"""The heuristic: always complete and within memory, indifferent to names, near the optimum, few moves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cluster.balance.baselines import static_frequency
from cluster.balance.bounds import layer_bounds
from cluster.balance.fleet import Devices, devices_with, equal_devices
from cluster.balance.heuristic import place
from cluster.balance.objective import Objective, apart, cost
from cluster.balance.problem import Placement, Problem
from cluster.errors import ConfigError, OutOfMemoryBudget
from cluster.types import NodeId
from support.balance import every_placement, problems


def placed(problem: Problem, **options: object) -> Placement | None:
    """None where one copy of each finds no room: problems are drawn with little to spare."""
    try:
        return place(problem, **options)  # type: ignore[arg-type]
    except OutOfMemoryBudget:
        return None


@given(problems())
def test_every_expert_has_a_copy_and_memory_is_never_exceeded(problem):
    placement = placed(problem)
    assume(placement is not None)
    problem.check(placement)
    copies = placement.hosts.sum(axis=2)
    assert (copies[problem.sparse] >= 1).all()
    assert (copies[~problem.sparse] == 0).all()


@given(problems(), st.randoms(use_true_random=False))
def test_a_current_placement_keeps_all_promises(problem, random):
    before = placed(problem)
    assume(before is not None)
    speeds = list(problem.devices.speed)
    random.shuffle(speeds)
    changed = replace(problem, devices=replace(problem.devices, speed=np.array(speeds)), current=before)
    after = place(changed)
    changed.check(after)
    assert cost(changed, after, Objective()) <= cost(changed, before, Objective()) + 1e-6


def renamed(problem: Problem, experts: np.ndarray, devices: np.ndarray) -> Problem:
    """experts: [layers, experts] and devices: the old index of each new one."""
    fleet = problem.devices
    current = problem.current
    if current is not None:
        current = Placement(np.take_along_axis(current.hosts, experts[:, :, None], axis=1)[:, :, devices])
    return Problem(
        np.take_along_axis(problem.load, experts, axis=1),
        np.take_along_axis(problem.expert_bytes, experts, axis=1),
        Devices(
            tuple(NodeId(f"other{index}") for index in range(len(fleet))),
            fleet.speed[devices],
            fleet.memory[devices],
            fleet.bandwidth[devices],
            fleet.site[devices],
        ),
        current,
    )


@given(problems(), st.integers(0, 2**32), st.booleans())
def test_names_do_not_matter(problem, seed, moving):
    rng = np.random.default_rng(seed)
    speed = rng.permutation(np.arange(1, len(problem.devices) + 1) * 1.25)
    distinct = problem.load + rng.random(problem.load.shape) * (problem.expert_bytes > 0)
    problem = replace(problem, load=distinct, devices=replace(problem.devices, speed=speed))
    first = placed(problem)
    assume(first is not None)
    if moving:
        problem = replace(problem, current=first, load=distinct[:, ::-1] * (problem.expert_bytes > 0))
        first = place(problem)
    experts = np.stack([rng.permutation(distinct.shape[1]) for _ in distinct])
    devices = rng.permutation(len(speed))
    again = place(renamed(problem, experts, devices))
    expected = np.take_along_axis(first.hosts, experts[:, :, None], axis=1)[:, :, devices]
    assert (again.hosts == expected).all()


@pytest.mark.parametrize("devices", [1, 3, 5, 7])
def test_equal_devices_are_interchangeable(devices):
    rng = np.random.default_rng(devices)
    load = rng.gamma(1, 10, (2, 11))
    sizes = np.ones((2, 11), np.int64)
    first = place(Problem(load, sizes, equal_devices(devices, 25)))
    order = rng.permutation(11)
    again = place(Problem(load[:, order], sizes, equal_devices(devices, 25)))
    assert (again.hosts == first.hosts[:, order]).all()


@given(st.lists(st.integers(1, 40), min_size=2, max_size=4), st.sampled_from([(1, 1), (1, 2), (2, 1, 1)]))
@settings(max_examples=30)
def test_small_problems_are_solved_to_the_optimum(rows, speeds):
    load, fleet = np.array([rows], np.float64), devices_with(speeds, [2] * len(speeds))
    assume(len(rows) <= 2 * len(speeds))
    problem = Problem(load, np.ones(load.shape, np.int64), fleet)
    goal = Objective(links=0, moves=0)
    best = min(cost(problem, option, goal) for option in every_placement(len(rows), len(speeds), 2))
    assert cost(problem, place(problem), goal) <= best * 1.011, (
        "the search ends within 1 % of what is possible"
    )


def test_an_expert_too_hot_for_one_device_is_replicated():
    load = np.array([[100.0, 1, 1, 1]])
    problem = Problem(load, np.ones((1, 4), np.int64), equal_devices(4, 2))
    bounds = layer_bounds(problem, place(problem))[0]
    assert bounds.balancedness >= 0.99


def test_memory_so_tight_that_only_one_way_fits():
    sizes = np.array([[7, 5, 4, 3, 3]])
    problem = Problem(np.array([[1.0, 9, 9, 9, 1]]), sizes, devices_with([1, 1, 1], [8, 8, 7]))
    with pytest.raises(OutOfMemoryBudget, match="bytes are missing on one device"):
        place(replace(problem, expert_bytes=np.array([[7, 5, 5, 5, 1]])))
    placement = place(problem)
    problem.check(placement)


def hot_and_cold(shift: int) -> np.ndarray:
    return np.roll(np.geomspace(200, 2, 32), shift)[None]


def test_little_moves_when_load_drifts():
    sizes, fleet = np.ones((1, 32), np.int64), equal_devices(8, 5)
    before = place(Problem(hot_and_cold(0), sizes, fleet))
    problem = Problem(hot_and_cold(3), sizes, fleet, current=before)
    after = place(problem)
    assert layer_bounds(problem, after)[0].balancedness >= 0.98
    fresh = place(replace(problem, current=None))
    assert problem.moved_bytes(after) <= problem.moved_bytes(fresh) / 3


def test_nothing_moves_when_nothing_changed():
    problem = Problem(hot_and_cold(0), np.ones((1, 32), np.int64), equal_devices(8, 5))
    before = place(problem)
    assert (place(replace(problem, current=before)).hosts == before.hosts).all()


def test_a_device_that_vanished_loses_its_experts_and_nothing_else_moves():
    fleet, sizes = equal_devices(4, 12), np.ones((1, 32), np.int64)
    before = place(Problem(hot_and_cold(0), sizes, fleet))
    gone = replace(fleet, memory=np.array([0, 12, 12, 12]))
    problem = Problem(hot_and_cold(0), sizes, gone, current=before)
    after = place(problem, Objective(moves=10))
    problem.check(after)
    assert not after.hosts[:, :, 0].any()
    assert problem.moved_bytes(after) <= 12


def two_sites(experts: int) -> Devices:
    fleet = equal_devices(4, experts)
    return replace(fleet, site=np.array([0, 1, 0, 1]))


def test_experts_that_fire_together_share_a_site():
    cliques = np.kron(np.eye(2), np.ones((4, 4)))[None]
    problem = Problem(np.ones((1, 8)), np.ones((1, 8), np.int64), two_sites(2), coactivation=cliques)
    assert apart(problem, place(problem)) == 0
    assert apart(problem, place(problem, Objective(links=0))) > 0


def test_experts_of_the_next_layer_follow_those_before():
    follows = np.kron(np.eye(2), np.ones((4, 4)))[None]
    together = np.concatenate([follows, np.zeros_like(follows)])
    sizes, fleet = np.ones((2, 8), np.int64), two_sites(4)
    problem = Problem(np.ones((2, 8)), sizes, fleet, coactivation=together, affinity=follows)
    assert apart(problem, place(problem)) == 0
    assert apart(problem, place(problem)) < apart(problem, place(problem, Objective(links=0)))


def test_active_experts_can_count_instead_of_rows():
    load = np.array([[1000.0, 1000, 5, 5, 5, 5, 5, 5]])
    problem = Problem(load, np.ones((1, 8), np.int64), equal_devices(2, 4))
    held = place(problem, Objective(makespan=0, distinct=1)).hosts[0].sum(axis=0)
    assert held.tolist() == [4, 4]


def test_the_seed_and_nothing_else_changes_the_search():
    rng = np.random.default_rng(0)
    problem = Problem(rng.gamma(1, 10, (1, 24)), np.ones((1, 24), np.int64), equal_devices(6, 5))
    assert (place(problem, seed=5).hosts == place(problem, seed=5).hosts).all()


def test_the_heuristic_beats_one_copy_by_frequency():
    rng = np.random.default_rng(0)
    problem = Problem(rng.lognormal(0, 1, (4, 64)), np.ones((4, 64), np.int64), equal_devices(8, 40))
    ours, theirs = (layer_bounds(problem, p) for p in (place(problem), static_frequency(problem)))
    assert all(ours[layer].balancedness > theirs[layer].balancedness for layer in ours)


@pytest.mark.parametrize("weights", [{"makespan": -1}, {"makespan": 0}, {"links": np.nan}])
def test_weights_that_make_no_sense_are_refused(weights):
    with pytest.raises(ConfigError, match="weights must be"):
        Objective(**weights)
