"""Replica choice: every row once and only where it may go, and the two optima against brute force."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.balance.choice import (
    Batch,
    Copies,
    distinct_experts,
    even_split,
    fewest_distinct,
    flow,
    least_loaded,
    makespan,
    power_of_two,
)

POLICIES: list[Callable[[Batch], np.ndarray]] = [
    even_split,
    least_loaded,
    power_of_two,
    partial(power_of_two, seed=2**64 - 1),
    flow,
    fewest_distinct,
]


@st.composite
def batches(draw, most_experts: int = 6, most_devices: int = 4, most_rows: int = 8) -> Batch:
    experts, devices = draw(st.integers(1, most_experts)), draw(st.integers(1, most_devices))
    holders = st.sets(st.integers(0, devices - 1), min_size=1)
    hosts = np.zeros((experts, devices), np.bool_)
    for expert in range(experts):
        hosts[expert, list(draw(holders))] = True
    rows = draw(st.lists(st.integers(0, most_rows), min_size=experts, max_size=experts))
    speeds = st.lists(st.sampled_from([0.5, 1.0, 1.0, 1.7, 4.0]), min_size=devices, max_size=devices)
    waits = st.lists(st.sampled_from([0.0, 0.0, 1.0, 2.5]), min_size=devices, max_size=devices)
    return Batch(np.array(rows), hosts, np.array(draw(speeds)), np.array(draw(waits)))


def rows_by(batch: Batch, device: int, time: float) -> int:
    """Whole rows that a device ends by `time`, by counting."""
    count = 0
    while batch.backlog[device] + (count + 1) / batch.speed[device] <= time:
        count += 1
    return count


def best_makespan(batch: Batch) -> float:
    """Smallest makespan of whole rows: the first time at which no set of experts needs more room (Hall)."""
    devices, total = range(batch.speed.size), int(batch.rows.sum())
    if not total:
        return 0.0
    times = sorted(
        {batch.backlog[d] + rows / batch.speed[d] for d in devices for rows in range(1, total + 1)}
    )
    experts = range(batch.rows.size)
    sets = [list(s) for n in experts for s in itertools.combinations(experts, n + 1)]
    for time in times:
        room = np.array([rows_by(batch, d, time) for d in devices])
        if all(batch.rows[s].sum() <= room[batch.hosts[s].any(axis=0)].sum() for s in sets):
            return float(time)
    raise AssertionError("every time is too early")


@pytest.mark.parametrize("policy", POLICIES)
@given(batch=batches())
def test_every_row_is_served_once_by_a_device_that_holds_its_expert(policy, batch):
    chosen = policy(batch)
    assert chosen.dtype == np.int64
    assert (chosen >= 0).all()
    assert (chosen.sum(axis=1) == batch.rows).all()
    assert not chosen[~batch.hosts].any()
    assert (policy(batch) == chosen).all()


@given(batch=batches())
def test_flow_is_the_best_that_whole_rows_allow(batch):
    assert makespan(batch, flow(batch)) == best_makespan(batch)


@given(batch=batches(most_experts=40, most_devices=12, most_rows=300))
def test_no_policy_beats_flow(batch):
    best = makespan(batch, flow(batch))
    assert all(best <= makespan(batch, policy(batch)) for policy in POLICIES)


@given(batch=batches())
def test_fewest_distinct_is_the_least_of_all_assignments(batch):
    active = np.flatnonzero(batch.rows)
    holders = [np.flatnonzero(batch.hosts[expert]) for expert in active]
    fewest = min(
        np.bincount(np.array(one, np.int64), minlength=1).max() for one in itertools.product(*holders)
    )
    chosen = fewest_distinct(batch)
    assert (np.count_nonzero(chosen, axis=1) <= 1).all()
    assert distinct_experts(chosen).max() == fewest


def two_devices(rows: list[int], **fields: list[float]) -> Batch:
    full = {"speed": [1.0, 1.0], "backlog": [0.0, 0.0]} | fields
    return Batch(rows, np.ones((len(rows), 2), np.bool_), **full)


def test_an_even_split_gives_remainders_to_different_copies():
    assert even_split(two_devices([3, 3])).tolist() == [[2, 1], [1, 2]]


def test_backlog_and_speed_decide_where_rows_go():
    assert least_loaded(two_devices([4], backlog=[2.0, 0.0])).tolist() == [[1, 3]]
    assert flow(two_devices([6], speed=[2.0, 1.0])).tolist() == [[4, 2]]
    assert flow(two_devices([6], backlog=[100.0, 0.0])).tolist() == [[0, 6]]


def test_two_random_copies_of_many_are_different_and_depend_on_the_seed():
    batch = Batch([64], np.ones((1, 8), np.bool_), np.ones(8), np.zeros(8))
    one, two = power_of_two(batch, seed=1), power_of_two(batch, seed=2)
    assert (one != two).any()
    assert one.max() <= 10, "two choices keep 64 rows on 8 devices within two of the mean"


@given(batch=batches())
def test_copies_are_the_entries_of_hosts(batch):
    copies = Copies.of(batch.hosts)
    assert (copies.spread(np.ones(copies.device.size, np.bool_)) == batch.hosts).all()
