"""The meter in a router is `fold` in place, and what it says survives the way to the controller."""

from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.balance.load import LoadStats, NodeLoad, StepLoad, fold
from cluster.dispatch.meter import LoadMeter
from cluster.dispatch.pace import Pace
from cluster.dispatch.transport import WireShape
from cluster.types import NodeId

SHAPE = WireShape(layers=3, experts=6, top_k=2, hidden=64)
NODES = (NodeId("a"), NodeId("b"))


def same(one: LoadStats, other: LoadStats) -> None:
    for (name, a), (_, b) in zip(one._sums(), other._sums(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, err_msg=name)
    assert one.nodes.keys() == other.nodes.keys()
    for node in one.nodes:
        assert one.nodes[node].speed == pytest.approx(other.nodes[node].speed, nan_ok=True)
        assert astuple(one.nodes[node]) == pytest.approx(astuple(other.nodes[node]))


@settings(max_examples=30)
@given(st.lists(st.integers(0, 2**31), max_size=8))
def test_it_is_fold_in_place(seeds: list[int]) -> None:
    meter, pace = LoadMeter(SHAPE, half_life=4.0), Pace(NODES)
    expected = LoadStats.empty(3, 6, 4.0)
    for seed in seeds:
        rng = np.random.default_rng(seed)
        tokens = int(rng.integers(1, 9))
        for layer in (0, 2):  # layer 1 is dense
            ids = np.argsort(rng.random((tokens, 6)), axis=1)[:, :2]
            meter.rows[layer] += np.bincount(ids.ravel(), minlength=6)
        sums = rng.random((2, 10))
        pace.sums += sums[:, :4]
        pace.links += sums[:, 4:]
        nodes = {name: NodeLoad(*each) for name, each in zip(NODES, sums.tolist(), strict=True)}
        expected = fold(expected, StepLoad(meter.rows.copy(), tokens, nodes))
        meter.end_step(pace)
        assert not meter.rows.any()
        assert not pace.sums.any()
        assert not pace.links.any()
    if seeds:
        same(meter.stats(), expected)


def test_a_step_without_rows_is_none() -> None:
    meter = LoadMeter(SHAPE)
    meter.end_step(Pace(NODES))
    assert meter.stats().steps == 0


def test_nodes_that_leave_the_table_are_forgotten_and_new_ones_begin_at_nothing() -> None:
    meter, pace = LoadMeter(SHAPE, half_life=1.0), Pace(NODES)
    meter.rows[0, :2] = pace.sums[:] = 1
    meter.end_step(pace)
    pace = pace.over((NodeId("b"), NodeId("c")))
    meter.rows[0, :2] = pace.sums[1] = 1
    meter.end_step(pace)
    rows = {name: node.rows for name, node in meter.stats().nodes.items()}
    assert rows == {"b": 0.5, "c": 1.0}


def test_a_pace_over_other_nodes_keeps_what_is_known() -> None:
    pace = Pace(NODES)
    pace.speed[:], pace.loads[1] = (10.0, 30.0), (2, 500)
    moved = pace.over((NodeId("c"), NodeId("b")))
    assert moved.speed.tolist() == [20.0, 30.0]
    assert moved.loads.tolist() == [[0, 0], [2, 500]]
