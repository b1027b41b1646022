"""The gate: logits, softmax, top-k with ties, the sigmoid gate of a shared expert."""

from __future__ import annotations

import numpy as np
import pytest
from numeric import oracle_trunk as oracle

from kernels.gate import gate_logits, gate_topk, sigmoid_gate

F = np.float32


def pack(weight):
    """[E, Hp] to [E16 / 16, Hp, 16]."""
    experts, width = weight.shape
    blocks = -(-experts // 16)
    full = np.zeros((blocks * 16, width), F)
    full[:experts] = weight
    return np.ascontiguousarray(full.reshape(blocks, 16, width).transpose(0, 2, 1))


def logits_of(h, weight, ranges=None):
    gate = pack(weight)
    out = np.full((len(h), gate.shape[0] * 16), np.nan, F)
    for begin, end in ranges or [(0, len(h))]:
        gate_logits(h, gate, out, begin, end)
    return out


def topk(logits, experts, k, renormalise=False, ranges=None):
    scratch = np.array(logits, F)
    ids, weights = np.full((len(scratch), k), -1, np.int32), np.full((len(scratch), k), np.nan, F)
    for begin, end in ranges or [(0, len(scratch))]:
        gate_topk(scratch, experts, k, renormalise, ids, weights, begin, end)
    return ids, weights


def padded(logits):
    """Logits [T, E] with columns up to a multiple of 16 that would win if they were looked at."""
    return np.pad(np.asarray(logits, F), [(0, 0), (0, -np.shape(logits)[1] % 16)], constant_values=100)


@pytest.mark.parametrize("experts", [1, 8, 16, 17, 60, 64, 65, 128])
@pytest.mark.parametrize("rows", [1, 3, 4, 5, 9])
def test_logits_agree_with_float64(rng, rows, experts):
    h, weight = rng.normal(size=(rows, 192)).astype(F), rng.normal(size=(experts, 192)).astype(F)
    out = logits_of(h, weight)
    exact = h.astype(np.float64) @ weight.astype(np.float64).T
    bound = 2e-7 * 192 * (np.abs(h).astype(np.float64) @ np.abs(weight).astype(np.float64).T) / 16
    assert np.all(np.abs(out[:, :experts] - exact) <= bound)
    assert (out[:, experts:] == 0).all()


def test_logits_are_one_chain_over_the_width(rng, same_bits):
    """Small integers: every partial sum is exact in any order but the one rounding step that is planted."""
    h = np.ones((1, 64), F)
    weight = np.zeros((16, 64), F)
    weight[:, 0], weight[:, 1], weight[:, 40] = 2.0**24, 1, -(2.0**24)
    assert (logits_of(h, weight) == 0).all()  # 2^24 + 1 rounds to 2^24: k = 1 was added before k = 40
    weight[:, 1], weight[:, 41] = 0, 1
    assert (logits_of(h, weight) == 1).all()


@pytest.mark.parametrize("experts", [8, 40, 80])
def test_rows_do_not_depend_on_the_split_or_their_batch(rng, same_bits, experts):
    h, weight = rng.normal(size=(11, 128)).astype(F), rng.normal(size=(experts, 128)).astype(F)
    whole = logits_of(h, weight)
    same_bits(logits_of(h, weight, [(5, 11), (0, 1), (1, 5)]), whole)
    for row in range(11):
        same_bits(logits_of(h[row : row + 1], weight), whole[row : row + 1])
    ids, weights = topk(whole, experts, 3, True)
    split_ids, split_weights = topk(whole, experts, 3, True, [(6, 11), (0, 6)])
    same_bits(split_ids, ids)
    same_bits(split_weights, weights)


@pytest.mark.parametrize(("experts", "k"), [(1, 1), (8, 2), (16, 16), (17, 4), (33, 33), (60, 4), (128, 8)])
@pytest.mark.parametrize("renormalise", [False, True])
def test_topk_agrees_with_float64(rng, experts, k, renormalise):
    logits = rng.normal(size=(20, experts)).astype(F) * F(3)
    ids, weights = topk(padded(logits), experts, k, renormalise)
    expected_ids, expected = oracle.gate(oracle.softmax(logits.astype(np.float64)), k, renormalise)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_allclose(weights, expected, rtol=2e-6)


def test_a_smaller_k_takes_the_front_of_a_larger_one(rng, same_bits):
    logits = padded(rng.normal(size=(6, 40)))
    all_ids, all_weights = topk(logits, 40, 40)
    for k in (1, 2, 7, 39):
        ids, weights = topk(logits, 40, k)
        same_bits(ids, np.ascontiguousarray(all_ids[:, :k]))
        same_bits(weights, np.ascontiguousarray(all_weights[:, :k]))
    assert (np.sort(all_ids) == np.arange(40)).all()


def test_ties_go_to_the_lower_expert():
    logits = padded([[1, 2, 2, 1, 2, 0], [0, 0, 0, 0, 0, 0], [-3, -3, 5, -3, -3, 5]])
    assert topk(logits, 6, 4)[0].tolist() == [[1, 2, 4, 0], [0, 1, 2, 3], [2, 5, 0, 1]]
    assert topk(np.zeros((1, 32), F), 32, 32)[0].tolist() == [list(range(32))]
    assert topk(padded([[0.0, -0.0, 0.0]]), 3, 3)[0].tolist() == [[0, 1, 2]]


def test_weights_sum_in_rank_order(same_bits):
    logits = padded(np.random.default_rng(1).normal(size=(50, 20)) * 4)
    _, raw = topk(logits, 20, 6)
    _, normed = topk(logits, 20, 6, True)
    total = raw[:, 0].copy()
    for rank in range(1, 6):
        total += raw[:, rank]
    same_bits(normed, raw / total[:, None])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e38, -1e38])
def test_ids_stay_in_range_whatever_the_logits(value):
    for logits in (np.full((1, 8), value), np.array([[0, value, 1, 2, value, 0, 0, 0]])):
        ids, weights = topk(padded(logits), 8, 8)
        assert sorted(ids[0]) == list(range(8))
        assert np.isfinite(weights).all()


def test_flipping_the_renormalisation_is_seen(rng):
    logits = padded(rng.normal(size=(4, 16)))
    assert np.abs(topk(logits, 16, 4)[1] - topk(logits, 16, 4, True)[1]).max() > 0.1


def test_sigmoid_gate(rng, same_bits):
    h, weight = rng.normal(size=(5, 192)).astype(F), rng.normal(size=192).astype(F)
    h[0], h[1], h[2] = 0, weight * 2, weight * -2  # one half, saturated at one and at zero
    y = rng.normal(size=(5, 192)).astype(F)
    out, split = y.copy(), y.copy()
    sigmoid_gate(h, weight, out, 0, 5)
    exact = y / (1 + np.exp(-(h.astype(np.float64) @ weight.astype(np.float64))))[:, None]
    assert np.all(np.abs(out - exact) <= 5e-6 * np.abs(exact) + 1e-37)
    same_bits(out[0], y[0] * F(0.5))
    for begin, end in ((3, 5), (0, 3)):
        sigmoid_gate(h, weight, split, begin, end)
    same_bits(split, out)
