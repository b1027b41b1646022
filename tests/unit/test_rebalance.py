"""Whether to move: gain and cost of a target, and the trial that a bench makes of the whole loop."""

from __future__ import annotations

import numpy as np
import pytest

from cluster.balance import choice
from cluster.balance.fleet import devices_with
from cluster.balance.migration import Budget
from cluster.balance.problem import Placement, Problem
from cluster.balance.rebalance import decide, step_seconds
from cluster.errors import ConfigError
from cluster.experiments import speed
from cluster.experiments.drift import DriftTrial, drift_trial, recovery
from cluster.experiments.generators import Workload, inclusion, step_rows, whole
from support.policies import by_load, dealt

LOAD = np.array([[30.0, 10.0]])
SIZES = np.array([[1000, 1000]])
BOTH_ON_ONE = Placement(np.array([[[1, 0], [1, 0]]], bool))
APART = Placement(np.array([[[1, 0], [0, 1]]], bool))
SPREAD = Placement(np.array([[[1, 1], [0, 1]]], bool))


def problem(current=BOTH_ON_ONE, speeds=(10.0, 10.0)):
    return Problem(LOAD, SIZES, devices_with(speeds, [2000, 2000], bandwidth=1000.0), current)


def test_a_step_takes_what_its_slowest_device_takes():
    assert step_seconds(problem(), BOTH_ON_ONE) == pytest.approx(4.0)
    assert step_seconds(problem(), APART) == pytest.approx(3.0)
    assert step_seconds(problem(), SPREAD) == pytest.approx(2.0, rel=1e-3)
    assert step_seconds(problem(speeds=(30.0, 10.0)), APART) == pytest.approx(1.0)


def test_gain_times_horizon_against_the_links_that_moves_take():
    """Expert 1 takes 2 s at half of 1000 bytes a second, which costs 1 s of serving; it saves 1 s a step."""
    for horizon, worth in ((0.9, False), (1.1, True)):
        decision = decide(problem(), APART, horizon, Budget(share=0.5))
        assert decision.gain == pytest.approx(1.0)
        assert decision.cost == pytest.approx(1.0)
        assert decision.worth is worth
    assert not decide(problem(), BOTH_ON_ONE, 1e9, Budget()).worth


def test_lost_experts_are_worth_any_cost():
    sound = problem(APART)
    hosts = Placement(np.array([[[1, 0], [1, 0]]], bool))
    decision = decide(sound, hosts, 1e-9, Budget(library=1.0), gone=[sound.devices.names[1]])
    assert decision.worth
    np.testing.assert_array_equal(decision.migration.reached.hosts, hosts.hosts)


def test_there_must_be_something_to_move_from():
    with pytest.raises(ConfigError, match="no current placement"):
        decide(problem(None), APART, 1, Budget())


def test_recovery_ends_with_the_first_good_mean_that_lasts():
    balance = np.concatenate([np.ones(20), np.full(15, 0.6), np.ones(100)])
    assert recovery(balance, 20) == 24  # a mean of ten with one low step is 0.96
    assert recovery(np.concatenate([balance, np.zeros(50), np.ones(200)]), 20) == 175
    assert recovery(np.ones(50), 10) == 0
    assert recovery(np.full(50, 0.9), 10) == 40


def test_rows_without_tokens_are_distributed_as_those_of_tokens():
    workload = Workload(
        layers=2, experts=16, top_k=4, steps=40, tokens=500, zipf=0.7, domains=2, switches=(20,)
    )
    drawn, trace = step_rows(workload, 3), whole(workload, 3)
    assert drawn.shape == (40, 2, 16)
    assert (drawn.sum(axis=2) == 2000).all()
    for half in (slice(0, 20), slice(20, 40)):
        expected = trace.counts(slice(half.start * 500, half.stop * 500)) / 20
        np.testing.assert_allclose(drawn[half].mean(axis=0), expected, rtol=0.12)
    ranked = np.arange(1, 17.0) ** -0.7
    np.testing.assert_allclose(
        np.sort(drawn[:20].mean(axis=0)[0]) / 500, np.sort(inclusion(ranked / ranked.sum(), 4)), rtol=0.05
    )


def test_the_drift_trial_of_a_small_trace():
    workload = Workload(
        layers=2, experts=16, top_k=4, steps=200, tokens=256, zipf=1.0, domains=2, switches=(100,)
    )
    trial = drift_trial(1, by_load, choice.flow, dealt, choice.even_split, workload)
    assert isinstance(trial, DriftTrial)
    assert 0 <= trial.steps <= 100
    assert trial.reference_moved == 0  # round robin does not follow the load
    with pytest.raises(ConfigError, match="one switch"):
        drift_trial(1, by_load, choice.flow, dealt, choice.even_split, Workload())


def test_the_speed_is_steps_over_the_clock(monkeypatch):
    monkeypatch.setattr(speed, "WORKLOAD", Workload(layers=2, experts=8, top_k=2, steps=1))
    monkeypatch.setattr(speed, "NODES", 4)
    assert speed.steps_per_second(choice.flow, 6, iter([10.0, 12.0]).__next__) == 3
