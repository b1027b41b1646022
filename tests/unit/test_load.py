"""Load statistics: sums that decay, add up in any order, survive the wire; drift that noise does not set
off.
"""

from __future__ import annotations

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.balance.load import LoadStats, NodeLoad, StepLoad, drift, fold, merge
from cluster.errors import ProtocolError
from cluster.types import NodeId

A, B = NodeId("a"), NodeId("b")


def step_of(rng, layers=3, experts=8, tokens=16, top_k=2, p=None):
    rows = np.stack([rng.multinomial(tokens * top_k, p or [1 / experts] * experts) for _ in range(layers)])
    return StepLoad(rows, tokens, {A: NodeLoad(1, 2 * tokens, 4, 0.001, 1, 0.0005, 4096)})


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
        stats = fold(stats, StepLoad(np.array([[5, 0, 3]]), 4, {A: NodeLoad(1, 8, 2, 0.004)}))
    np.testing.assert_allclose(stats.load, [[5, 0, 3]])
    np.testing.assert_allclose(stats.distinct_per_step, [2])
    assert stats.nodes[A].speed == pytest.approx(2000)
    assert stats.nodes[A].rate == pytest.approx(2000)


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
        {"shape": [float("inf"), 8]},
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


def trips_of(rng, latency_s, bandwidth, count=400, noise_s=1e-4, most=40_000):
    """Sums over round trips of random sizes with exponential noise, as a router adds them up."""
    sizes = rng.integers(1_000, most, count).astype(float)
    times = latency_s + sizes / bandwidth + rng.exponential(noise_s, count)
    sums = (count, times.sum(), sizes.sum(), (sizes**2).sum(), (times**2).sum(), (sizes * times).sum())
    return NodeLoad(count, 8 * count, count, 0.001 * count, *map(float, sums))


@settings(max_examples=20)
@given(seed=st.integers(0, 1000), bandwidth=st.floats(1e6, 1e8), latency_s=st.floats(0, 1e-2))
def test_round_trips_tell_latency_and_bandwidth(seed, bandwidth, latency_s):
    node = trips_of(np.random.default_rng(seed), latency_s, bandwidth)
    assert node.link.bandwidth == pytest.approx(bandwidth, rel=0.2)
    assert node.link.latency_s == pytest.approx(latency_s + 1e-4, abs=1e-4)
    carried = node.bytes / node.link.bandwidth
    assert node.rate == pytest.approx(node.rows / (node.service_s + carried))


def test_what_round_trips_do_not_tell_is_not_guessed():
    rng = np.random.default_rng(0)
    assert np.isnan(NodeLoad(9, 9, 9, 1.0).link.bandwidth)
    assert np.isnan(trips_of(rng, 0.001, 1e6, count=20).link.bandwidth)
    assert np.isnan(trips_of(rng, 0.001, 1e6, most=1_001).link.bandwidth)
    lost = trips_of(rng, 0.001, 1e12)
    assert np.isnan(lost.link.bandwidth)
    assert lost.link.latency_s == pytest.approx(0.0011, rel=0.1)
    assert lost.rate == lost.speed


@given(st.integers(0, 12), st.integers(0, 12))
def test_a_window_can_be_cut_out_of_decayed_sums(first, more):
    rng = np.random.default_rng(first + 100 * more)
    steps = [step_of(rng, tokens=int(rng.integers(1, 9))) for _ in range(first + more)]
    stats, window = LoadStats.empty(3, 8, 6.0), LoadStats.empty(3, 8, 6.0)
    for step in steps[:first]:
        stats = fold(stats, step)
    earlier = LoadStats.from_wire(stats.to_wire())
    for step in steps[first:]:
        stats, window = fold(stats, step), fold(window, step)
    since = LoadStats.from_wire(stats.to_wire()).since(earlier)
    for (name, x), (_, y) in zip(since._sums(), window._sums(), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-4, err_msg=name)
    assert since.nodes.get(A, NodeLoad()).rows == pytest.approx(
        window.nodes.get(A, NodeLoad()).rows, abs=1e-6
    )
    if more:
        with pytest.raises(ValueError, match="do not follow"):
            earlier.since(stats)


def test_the_imbalance_of_a_layer_is_its_hottest_expert_over_the_mean():
    rows = np.array([[4, 0, 0, 0], [0, 0, 0, 0], [2, 2, 2, 2]])
    stats = fold(LoadStats.empty(3, 4, 8.0), StepLoad(rows, 4))
    assert stats.imbalance.tolist() == [4.0, 0.0, 1.0]
