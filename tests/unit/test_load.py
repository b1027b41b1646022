"""Load statistics: sums that decay, add up in any order, survive the wire; drift that noise does not set
off.
"""

from __future__ import annotations

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.balance.load import LoadStats, NodeLoad, StepLoad, drift, fold, merge
from cluster.errors import ProtocolError
from cluster.types import NodeId

A, B = NodeId("a"), NodeId("b")


def step_of(rng, layers=3, experts=8, tokens=16, top_k=2, p=None):
    rows = np.stack([rng.multinomial(tokens * top_k, p or [1 / experts] * experts) for _ in range(layers)])
    return StepLoad(rows, tokens, {A: NodeLoad(1, 2 * tokens, 4, 0.001, 0.0005, 4096)})


def stats_of(seed, steps=5, half_life=10.0):
    rng = np.random.default_rng(seed)
    stats = LoadStats.empty(3, 8, half_life)
    for _ in range(steps):
        stats = fold(stats, step_of(rng))
    return stats


def same(a, b, rtol=1e-9):
    assert a.half_life == b.half_life
    assert a.nodes.keys() == b.nodes.keys()
    for (name, x), (_, y) in zip(a._sums(), b._sums(), strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, err_msg=name)
    for name in a.nodes:
        assert a.nodes[name].speed == pytest.approx(b.nodes[name].speed)


def test_a_step_counts_half_after_its_half_life():
    stats = fold(LoadStats.empty(1, 2, 4), StepLoad(np.array([[8, 0]]), 8))
    for _ in range(4):
        stats = fold(stats, StepLoad(np.array([[0, 0]]), 0))
    assert stats.rows[0, 0] == pytest.approx(4)
    assert stats.distinct[0] == pytest.approx(0.5)


def test_a_constant_load_is_its_own_mean():
    stats = LoadStats.empty(1, 3, 7)
    for _ in range(40):
        stats = fold(stats, StepLoad(np.array([[5, 0, 3]]), 4, {A: NodeLoad(1, 8, 2, 0.004, 0.001, 1000)}))
    np.testing.assert_allclose(stats.load, [[5, 0, 3]])
    np.testing.assert_allclose(stats.distinct_per_step, [2])
    assert stats.nodes[A].speed == pytest.approx(2000)
    assert stats.nodes[A].bandwidth == pytest.approx(1e6)
    assert stats.nodes[A].rate == pytest.approx(1600)


def test_the_effective_sample_of_equal_weights_is_the_sample():
    stats = LoadStats.empty(1, 2, 1e12)
    for _ in range(10):
        stats = fold(stats, StepLoad(np.array([[3, 1]]), 4))
    assert stats.sample == pytest.approx(40)


@given(st.tuples(*[st.integers(0, 2**32)] * 3))
def test_merging_is_associative_and_commutative(seeds):
    a, b, c = (stats_of(seed) for seed in seeds)
    same(merge([merge([a, b]), c]), merge([a, merge([b, c])]))
    same(merge([a, b]), merge([b, a]))


def test_merged_routers_keep_the_mean():
    a = stats_of(1)
    same(merge([a, a]), merge([a, a]))
    np.testing.assert_allclose(merge([a, a]).load, a.load)


def test_what_does_not_fit_is_not_merged():
    with pytest.raises(ValueError, match="cannot be added"):
        merge([stats_of(1), stats_of(1, half_life=3)])
    with pytest.raises(ValueError, match="a step of shape"):
        fold(stats_of(1), StepLoad(np.zeros((2, 8), int), 1))


@given(st.integers(0, 2**32))
def test_the_wire_form_survives_msgpack(seed):
    stats = stats_of(seed)
    same(LoadStats.from_wire(msgpack.unpackb(msgpack.packb(stats.to_wire()))), stats, rtol=1e-6)


@pytest.mark.parametrize(
    "broken",
    [
        {"half_life": 0},
        {"half_life": float("nan")},
        {"sums": [1, 2]},
        {"sums": [-1, 2, 3]},
        {"shape": [2, 8]},
        {"rows": b"123"},
        {"rows": np.full(24, np.nan, "<f4").tobytes()},
        {"distinct": b""},
        {"nodes": {"a": [1]}},
        {"nodes": {"a": [-1, 0, 0, 0, 0, 0]}},
        {"nodes": 3},
    ],
)
def test_a_broken_wire_form_is_a_protocol_error(broken):
    with pytest.raises(ProtocolError, match="broken load statistics"):
        LoadStats.from_wire(stats_of(1).to_wire() | broken)
    with pytest.raises(ProtocolError):
        LoadStats.from_wire({})


def test_noise_is_no_drift_and_is_what_the_formula_expects():
    """Hundreds of comparisons of samples of one distribution: no alarm, mean distance as predicted."""
    rng = np.random.default_rng(0)
    p = list(np.arange(1, 17) / np.arange(1, 17).sum())
    ratios = []
    for _ in range(200):
        recent, reference = (
            fold(LoadStats.empty(4, 16, 1), step_of(rng, 4, 16, tokens, 2, p)) for tokens in (100, 1000)
        )
        seen = drift(recent, reference, tolerance=0)
        assert not seen.found
        ratios.append(seen.distance / seen.noise)
    assert np.mean(ratios) == pytest.approx(1, abs=0.05)


def test_a_changed_layer_is_found_and_no_other():
    rng = np.random.default_rng(1)
    reference, recent = step_of(rng, 3, 8, 4000), step_of(rng, 3, 8, 1000)
    rows = recent.rows.copy()
    rows[1] = np.sort(rows[1]) + np.arange(8) * 60
    found = drift(
        fold(LoadStats.empty(3, 8, 5), StepLoad(rows, 1000)), fold(LoadStats.empty(3, 8, 5), reference)
    )
    assert found.layers.tolist() == [1]


def test_without_a_sample_there_is_no_drift():
    assert not drift(LoadStats.empty(3, 8, 10), stats_of(1)).found
