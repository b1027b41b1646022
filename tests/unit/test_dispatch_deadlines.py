"""How long a node is waited for, and what asking twice may cost."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.dispatch.budget import HedgeBudget
from cluster.dispatch.deadlines import (
    BASE_S,
    LEAST_HEDGE_S,
    LEAST_LATE_S,
    MOST_LATE_S,
    PER_OCTAVE,
    UNKNOWN,
    NodeTimes,
    ServiceTimes,
    Stretches,
)

STEP = 2 ** (1 / PER_OCTAVE)


@given(st.lists(st.floats(0.1, 1000.0), min_size=1, max_size=200), st.floats(0.05, 1.0))
def test_a_quantile_is_right_to_a_bucket(values: list[float], share: float) -> None:
    stretches = Stretches()
    for value in values:
        stretches.add(value)
    found = stretches.quantile(share)
    assert min(values) <= found * 1.0001
    assert found <= max(values) * STEP * 1.0001


def test_old_stretches_are_forgotten() -> None:
    stretches = Stretches()
    for _ in range(2000):
        stretches.add(100.0)
    for _ in range(2000):
        stretches.add(1.0)
    assert stretches.quantile(0.99) <= STEP


def test_nobody_is_hurried_before_his_times_are_known() -> None:
    times = NodeTimes()
    assert times.allowance(0.01) == UNKNOWN
    for _ in range(15):
        times.answered(0.01, 0.01)
    assert times.allowance(0.01) == UNKNOWN
    times.answered(0.01, 0.01)
    assert times.allowance(0.01).late_s < MOST_LATE_S


@given(
    st.lists(st.floats(1e-5, 100.0), min_size=64, max_size=64),
    st.floats(1e-4, 100.0),
)
def test_allowances_are_bounded_below_and_above(seconds: list[float], expected: float) -> None:
    times = NodeTimes()
    for each in seconds:
        times.answered(0.01, each)
    hedge, late = times.allowance(expected)
    assert LEAST_LATE_S <= late <= MOST_LATE_S
    assert LEAST_HEDGE_S <= hedge <= late


def test_what_usually_takes_long_may_take_long() -> None:
    times = NodeTimes()
    for _ in range(64):
        times.answered(0.1, 0.2)
    small, large = times.allowance(0.1), times.allowance(0.5)
    assert large.late_s == pytest.approx(min(5 * small.late_s, MOST_LATE_S))
    assert small.hedge_s > 0.2


def test_bytes_count_at_the_measured_bandwidth() -> None:
    times, rng = NodeTimes(), np.random.default_rng(0)
    plain = times.expected(10, 10_000_000, 1e4)
    assert plain == pytest.approx(BASE_S + 1e-3)
    for size in rng.integers(1_000, 1_000_000, 400).tolist():
        times.carried(1e-4 + size / 12.5e6, size)
    assert times.expected(10, 12_500_000, 1e4) == pytest.approx(plain + 1.0, rel=0.05)


def test_times_belong_to_nodes() -> None:
    times = ServiceTimes()
    assert times.of("a") is times.of("a")
    assert times.of("a") is not times.of("b")


@given(
    st.lists(st.tuples(st.integers(0, 4000), st.integers(1, 600)), max_size=100),
    st.floats(0.0, 0.5),
    st.floats(0.0, 2000.0),
)
def test_no_more_is_spent_than_the_share_and_the_burst(
    turns: list[tuple[int, int]], share: float, burst: float
) -> None:
    budget, sent, spent = HedgeBudget(share, burst), 0, 0
    for earned, wanted in turns:
        sent += earned
        if budget.spend(wanted, sent):
            spent += wanted
        assert spent <= burst + share * sent + 1e-6


def test_a_budget_recovers_and_does_not_hoard() -> None:
    budget = HedgeBudget(0.05, 100.0)
    assert budget.spend(100, 0)
    assert not budget.spend(1, 0)
    assert budget.spend(1, 20)
    assert not budget.spend(101, 10**9)
    assert budget.spend(100, 10**9)
    assert math.isinf(UNKNOWN.hedge_s)
