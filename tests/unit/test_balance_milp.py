"""The exact placement against brute force, the heuristic and its own bound."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest

from cluster.balance.fleet import devices_with, equal_devices
from cluster.balance.heuristic import place
from cluster.balance.milp import plan
from cluster.balance.objective import Objective, cost
from cluster.balance.problem import Problem
from cluster.errors import ConfigError, MissingExtra
from support.balance import every_placement

GOAL = Objective(links=0, moves=0.1)


def one_layer(load: list[float], speeds: list[float], slots: int) -> Problem:
    fleet = devices_with(speeds, [slots] * len(speeds))
    return Problem(np.array([load]), np.ones((1, len(load)), np.int64), fleet)


@pytest.mark.parametrize(
    ("load", "speeds", "slots"),
    [
        ([5, 3, 2], [1, 1], 2),
        ([9, 1, 1, 1], [1, 1, 1], 2),
        ([8, 7, 6, 1], [1, 2], 2),
        ([4, 4, 4], [3, 1, 1], 1),
    ],
)
def test_no_placement_of_all_is_better(load, speeds, slots):
    problem = one_layer([float(rows) for rows in load], speeds, slots)
    best = min(cost(problem, option, GOAL) for option in every_placement(len(load), len(speeds), slots))
    found = plan(problem, GOAL)
    assert found.cost == pytest.approx(best, rel=1e-4)
    assert found.optimal
    assert found.bound <= found.cost * (1 + 1e-6)
    assert "optimal" in found.report()
    problem.check(found.placement)


def test_moves_cost_and_memories_are_shared_by_layers():
    rng = np.random.default_rng(3)
    problem = Problem(rng.gamma(1, 9, (2, 4)), rng.integers(1, 3, (2, 4)), devices_with([1, 2], [8, 7]))
    moved = replace(problem, load=problem.load[:, ::-1], current=place(problem, GOAL))
    found = plan(moved, GOAL)
    moved.check(found.placement)
    assert found.cost <= cost(moved, place(moved, GOAL), GOAL) + 1e-9
    assert found.bound <= found.cost + 1e-9


def test_a_short_limit_still_gives_a_placement_and_says_how_far_it_may_be():
    rng = np.random.default_rng(0)
    problem = Problem(rng.lognormal(0, 1, (1, 24)), np.ones((1, 24), np.int64), equal_devices(6, 5))
    found = plan(problem, GOAL, limit_s=0.2)
    problem.check(found.placement)
    assert 0 <= found.gap < 1
    assert found.cost <= cost(problem, place(problem, GOAL), GOAL) + 1e-9


def test_links_are_refused_and_a_missing_solver_names_its_extra(monkeypatch):
    problem = replace(one_layer([1.0, 2.0], [1, 1], 2), coactivation=np.ones((1, 2, 2)))
    with pytest.raises(ConfigError, match="knows no links"):
        plan(problem)
    monkeypatch.setitem(sys.modules, "highspy", None)
    with pytest.raises(MissingExtra, match=r"moemesh\[plan\]"):
        plan(problem, GOAL)
