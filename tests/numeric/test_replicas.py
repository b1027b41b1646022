"""Rows to copies and what answers tell, against loops over lists."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.balance.choice import Batch, Copies, flow
from kernels.replicas import (
    BACKLOG,
    FORGET,
    KEEP,
    SPEED,
    count_rows,
    flow_copies,
    give_rows,
    name_experts,
    observe_call,
)

EXAMPLES = settings(max_examples=60)


@st.composite
def calls(draw):
    """(ids [T, k] distinct in a row, hosts [experts, nodes], speed, backlog)."""
    experts, nodes, tokens = draw(st.integers(1, 12)), draw(st.integers(1, 5)), draw(st.integers(0, 20))
    k = draw(st.integers(1, min(experts, 4)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    ids = np.array([rng.permutation(experts)[:k] for _ in range(tokens)], np.int32).reshape(tokens, k)
    hosts = rng.random((experts, nodes)) < 0.4
    hosts[np.arange(experts), rng.integers(0, nodes, experts)] = True
    return ids, hosts, rng.integers(1, 9, nodes) / 4, rng.integers(0, 5, nodes) / 2


def by_flow(ids, hosts, speed, backlog):
    copies, chosen = Copies.of(hosts), np.full(ids.shape, -1, np.int32)
    rows, share = np.empty(len(hosts), np.int64), np.empty(copies.device.size, np.int64)
    flow_copies(ids, copies.starts, copies.device, speed, backlog, rows, share, chosen)
    return copies, chosen


@EXAMPLES
@given(calls())
def test_every_pair_has_a_copy_of_its_expert_and_copies_their_shares(call):
    ids, hosts, speed, backlog = call
    copies, chosen = by_flow(*call)
    assert (copies.starts[ids] <= chosen).all()
    assert (chosen < copies.starts[ids + 1]).all()
    rows = np.bincount(ids.ravel(), minlength=len(hosts))
    served = np.bincount(chosen.ravel(), minlength=copies.device.size)
    assert (copies.spread(served) == flow(Batch(rows, hosts, speed, backlog))).all()
    assert (by_flow(*call)[1] == chosen).all()


@EXAMPLES
@given(calls())
def test_consecutive_rows_of_an_expert_go_to_one_copy(call):
    ids, hosts, *_ = call
    _, chosen = by_flow(*call)
    for expert in range(len(hosts)):
        mine = chosen[ids == expert].tolist()
        assert mine == sorted(mine)


@EXAMPLES
@given(calls())
def test_names_undo_copies(call):
    ids, hosts, *_ = call
    _, chosen = by_flow(*call)
    experts = chosen.reshape(-1).copy()
    name_experts(np.nonzero(hosts)[0].astype(np.int32), experts)
    assert (experts == ids.reshape(-1)).all()


def test_shares_that_do_not_add_up_still_serve_every_row():
    ids, copies = np.zeros((5, 1), np.int32), np.full((5, 1), -1, np.int32)
    give_rows(ids, np.array([0, 3]), np.array([1, -2, 1]), copies)
    assert copies.ravel().tolist() == [0, 2, 2, 2, 2]
    rows = np.full(3, 7)
    count_rows(ids, rows)
    assert rows.tolist() == [5, 0, 0]


def observed(experts, pair_start, loads, state):
    nodes = len(pair_start) - 1
    rows, sums, pace = state or (np.zeros(9, np.int64), np.zeros((nodes, 4)), np.zeros((4, nodes)))
    observe_call(np.array(experts, np.int32), np.array(pair_start), np.array(loads), 9, rows, sums, pace)
    return rows, sums, pace


@EXAMPLES
@given(st.lists(st.lists(st.integers(0, 8), max_size=6), min_size=1, max_size=5))
def test_counts_are_those_of_the_call(parts):
    pair_start = np.cumsum([0, *map(len, parts)])
    loads = [[0, 10 * (n + 1)] for n in range(len(parts))]
    experts = [expert for part in parts for expert in part]
    rows, sums, pace = observed(experts, pair_start, loads, None)
    assert rows.tolist() == [Counter(experts)[e] for e in range(9)]
    for node, part in enumerate(parts):
        seconds = 10e-6 * (node + 1)
        expected = [1, len(part), len(set(part)), seconds] if part else [0, 0, 0, 0]
        assert sums[node].tolist() == pytest.approx(expected)
        if part:
            assert pace[SPEED, node] == pytest.approx(len(part) / seconds)
    assert (pace[SPEED] > 0).all()


def test_a_node_that_has_not_answered_is_as_fast_as_the_others():
    *_, pace = observed([0, 1, 2], [0, 1, 3, 3], [[0, 1000], [0, 1000], [0, 0]], None)
    assert pace[SPEED].tolist() == pytest.approx([1000, 2000, 1500])


def test_old_answers_fade_and_nobody_stays_slow_for_ever():
    state = observed([0, 1], [0, 1, 2], [[0, 1000], [3, 4000]], None)
    assert state[2][BACKLOG].tolist() == pytest.approx([0, 3 * 4e-3])
    *_, pace = observed([0, 1], [0, 2, 2], [[0, 1000], [3, 4000]], state)
    assert pace[SPEED, 0] == pytest.approx((KEEP + 2) / (KEEP * 1e-3 + 1e-3))
    assert pace[SPEED, 1] == pytest.approx(1 / (4e-3 * FORGET))
    assert pace[BACKLOG, 1] == pytest.approx(6e-3)
