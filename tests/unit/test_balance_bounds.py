"""Lower bounds: below everything that can be built, and exact where a brute force can say so."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.balance.bounds import (
    dispatch_bound,
    fluid_bound,
    layer_bounds,
    replica_bound,
)
from cluster.balance.fleet import devices_with
from cluster.balance.heuristic import place
from cluster.balance.problem import Problem
from support.balance import every_placement, least_makespan, problems


@given(problems(most_layers=1, most_experts=6))
def test_the_dispatch_bound_is_the_tightest_set_of_experts(problem):
    load, speed, hosts = problem.load[0], problem.devices.speed, place(problem, work=0).hosts[0]
    assert dispatch_bound(load, hosts, speed) == pytest.approx(least_makespan(load, hosts, speed), rel=1e-9)


@given(problems())
def test_bounds_are_in_order(problem):
    for bounds in layer_bounds(problem, place(problem, work=0)).values():
        assert bounds.fluid <= bounds.replica * (1 + 1e-9)
        assert bounds.replica <= bounds.dispatch * (1 + 1e-9)
        assert 0 < bounds.balancedness <= bounds.attainable * (1 + 1e-9) <= 1 + 2e-9


@given(st.lists(st.integers(0, 30), min_size=1, max_size=3), st.sampled_from([(1, 1), (1, 2), (4, 1, 2)]))
def test_no_placement_with_as_many_copies_beats_the_replica_bound(rows, speeds):
    load, speed = np.array(rows, np.float64), np.array(speeds, np.float64)
    for placement in every_placement(load.size, speed.size, slots=load.size):
        hosts = placement.hosts[0]
        assert replica_bound(load, speed, int(hosts.sum())) <= least_makespan(load, hosts, speed) * (1 + 1e-9)


def test_the_replica_bound_counts_the_fastest_devices_first():
    load, speed = np.array([80.0, 10.0, 10.0]), np.array([1.0, 3.0, 1.0])
    assert fluid_bound(load, speed) == 20
    assert replica_bound(load, speed, 4) == pytest.approx(20), "two copies do 80 rows in 20 s"
    assert replica_bound(load, speed, 3) == pytest.approx(80 / 3), "one copy needs the fast device for 27 s"


def test_a_layer_without_load_is_balanced():
    problem = Problem(np.zeros((1, 3)), np.ones((1, 3), np.int64), devices_with([1, 2], [2, 2]))
    bounds = layer_bounds(problem, place(problem))[0]
    assert (bounds.dispatch, bounds.balancedness, bounds.attainable) == (0, 1, 1)
