"""The baselines: EPLB gives its README's figures, the others what their names say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given

from cluster.balance import baselines, policies
from cluster.balance.bounds import layer_bounds
from cluster.balance.choice import flow
from cluster.balance.fleet import devices_with, equal_devices
from cluster.balance.heuristic import place
from cluster.balance.problem import Problem
from cluster.cli.bench_balance import README_LOAD
from cluster.errors import ConfigError, OutOfMemoryBudget, UnknownPolicy
from support.balance import problems


def measured(placed: np.ndarray) -> list[float]:
    return [
        round(baselines.balancedness(baselines.even_loads(*pair)), 3)
        for pair in zip(README_LOAD, placed, strict=True)
    ]


def test_eplb_gives_the_figures_of_its_example():
    assert measured(baselines.eplb_global(README_LOAD, 16, 8)) == [0.932, 0.84]
    assert measured(baselines.eplb_hierarchical(README_LOAD, 16, 4, 2, 8)) == [0.828, 0.805]


def test_eplb_uses_every_slot_and_keeps_groups_on_nodes():
    placed = baselines.eplb_hierarchical(README_LOAD, 16, 4, 2, 8)
    assert (placed.sum(axis=1) == 2).all()
    on_node = placed.reshape(2, 4, 3, 2, 4).sum(axis=(2, 4)) > 0
    assert (on_node.sum(axis=2) == 1).all(), "a group of three experts is on one node"


def test_eplb_refuses_what_it_cannot_divide():
    with pytest.raises(ConfigError, match="as many copies"):
        baselines.eplb_global(README_LOAD, 17, 8)
    with pytest.raises(ConfigError, match="must divide"):
        baselines.eplb_hierarchical(README_LOAD, 16, 5, 2, 8)
    unequal = devices_with([1, 1], [13, 11])
    with pytest.raises(ConfigError, match="needs equal slots: 5"):
        baselines.eplb(Problem(README_LOAD, np.ones((2, 12), np.int64), unequal))


def test_eplb_answers_a_problem():
    problem = Problem(README_LOAD, np.ones((2, 12), np.int64), equal_devices(8, 4))
    placement = baselines.eplb(problem)
    problem.check(placement)
    assert [round(b.balancedness, 3) for b in layer_bounds(problem, placement).values()] == [0.943, 0.868]


@pytest.mark.parametrize("policy", [baselines.round_robin, baselines.random, baselines.static_frequency])
@given(problem=problems())
def test_every_baseline_makes_one_copy_within_memory(policy, problem):
    try:
        placement = policy(problem)
    except OutOfMemoryBudget:
        assume(False)
    problem.check(placement)
    assert (placement.hosts.sum(axis=2) == problem.sparse[:, None]).all()


def test_baselines_place_as_they_are_called():
    problem = Problem(np.array([[9.0, 1, 1, 7]]), np.ones((1, 4), np.int64), equal_devices(2, 4))
    assert baselines.round_robin(problem).hosts[0, :, 0].tolist() == [True, False, True, False]
    light = baselines.static_frequency(problem).hosts[0, :, 0].tolist()
    assert light == [True, False, False, False], "9 against 7 + 1 + 1"
    draws = [baselines.random(problem, seed).hosts.tobytes() for seed in range(8)]
    assert len(set(draws)) > 1
    assert draws[3] == baselines.random(problem, 3).hosts.tobytes()


def test_a_baseline_says_how_many_bytes_it_lacks():
    problem = Problem(np.ones((1, 2)), np.array([[3, 3]]), devices_with([1, 1], [4, 2]))
    with pytest.raises(OutOfMemoryBudget, match="expert 1 of layer 0 lacks 1 bytes"):
        baselines.round_robin(problem)


def test_policies_are_found_by_their_path():
    assert policies.resolve("cluster.balance.heuristic:place") is place
    assert policies.resolve("cluster.balance.choice:flow") is flow


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("place", 'not "module:function"'),
        ("cluster.balance.heuristic:", 'not "module:function"'),
        (":place", 'not "module:function"'),
        ("no.such.module:place", "No module named 'no'"),
        ("cluster.balance.heuristic:plaice", "has no function plaice; it defines place"),
        ("cluster.balance.heuristic:ENOUGH", "has no function ENOUGH"),
    ],
)
def test_a_policy_that_is_not_there_is_a_clear_error(path, words):
    with pytest.raises(UnknownPolicy, match=words):
        policies.resolve(path)
