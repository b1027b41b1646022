"""Which groups a thread takes whole: equal work for each, or none at all."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.compute.ffn import WAIT, shares
from kernels.prefill import MANY


def start_of(*rows: int, first: int = 0) -> np.ndarray:
    return first + np.concatenate([[0], np.cumsum(rows)]).astype(np.int64)


@pytest.mark.parametrize(
    ("rows", "threads", "bounds"),
    [
        ((1, 1, 1, 1, 1), 1, [0, 5]),
        ((300,), 1, [0, 1]),
        ((1, 1, 1, 1, 1), 2, [0, 2, 4]),
        ((1,), 2, [0, 0, 0]),
        ((64, 64), 2, [0, 1, 2]),
        ((300,), 2, [0]),
        ((64, 64, 64), 2, [0]),
        ((100, 20, 60, 60), 2, [0, 2, 4]),
        ((40,) * 9, 3, [0, 3, 6, 9]),
    ],
)
def test_groups_are_cut_where_nobody_waits(rows: tuple[int, ...], threads: int, bounds: list[int]) -> None:
    assert shares(start_of(*rows), threads) == bounds
    assert shares(start_of(*rows, first=7), threads) == bounds, "a part of a step's groups keeps its pairs"


@given(st.lists(st.integers(1, 300), min_size=1, max_size=80), st.integers(1, 8))
def test_shares_are_in_order_and_fair(rows: list[int], threads: int) -> None:
    bounds = shares(start_of(*rows), threads)
    assert bounds[0] == 0
    assert bounds == sorted(bounds)
    assert len(bounds) in (1, threads + 1)
    assert bounds[-1] <= len(rows)
    if sum(rows) > 4 * len(rows) and bounds[-1]:
        assert bounds[-1] == len(rows), "many rows are taken whole by all or by nobody"
        cost = [sum(max(n, MANY) for n in rows[a:b]) for a, b in itertools.pairwise(bounds)]
        assert max(cost) <= WAIT * sum(cost) / threads + 1e-9
