"""The grouped feed-forward network against the twin that does one expert after the other."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numeric import oracle
from numeric.weights import BF16, F32, INT4, INT8, pad, random_experts

from kernels import experts, quantise

F = np.float32
KINDS = {"int8": [INT8], "int4": [INT4], "mixed": [INT8, INT4, INT4], "f32": [F32], "bf16": [BF16]}


class Pairs:
    """A step's (row, expert) pairs, drawn in request order and sorted by expert."""

    def __init__(self, rows, expert_of_pair):
        expert_of_pair = np.asarray(expert_of_pair, np.int64)
        self.row_of_request = np.asarray(rows, np.int64)
        self.expert_of_request = expert_of_pair
        self.order = np.argsort(expert_of_pair, kind="stable").astype(np.int64)
        self.row_of = self.row_of_request[self.order]
        self.experts, counts = np.unique(expert_of_pair, return_counts=True)
        self.group_start = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)

    def __len__(self):
        return len(self.order)


def in_parts(items, cuts):
    edges = [0, *sorted(int(c) for c in cuts), items]
    return list(itertools.pairwise(edges))


def run(weights, x, pairs, hidden, width, parts=lambda items: [(0, items)]):
    """Output rows in request order [P, Hp], through the kernels; parts(items) splits every phase."""
    integer = weights.gate_up[0].kinds[0] in (INT8, INT4)
    base = weights.base[pairs.experts]
    groups, hp, fp = len(pairs.experts), pad(hidden, 64), pad(width, 64)
    h, out = np.full((len(pairs), fp), np.nan, F), np.full((len(pairs), hp), np.nan, F)
    first, second = groups * (fp // 16), groups * (hp // 16)
    if not integer:
        for begin, end in parts(first):
            experts.gate_up_float(
                weights.blob, base, pairs.group_start, pairs.row_of, x, fp // 16, h, begin, end
            )
        for begin, end in parts(second):
            experts.down_float(
                weights.blob, base, weights.down_offset, pairs.group_start, h, out, pairs.order, begin, end
            )
        return out
    q, scale, sums = oracle.quantise_rows(x)
    for begin, end in parts(first):
        experts.gate_up_int(
            weights.blob, base, pairs.group_start, pairs.row_of, q, sums, scale, fp // 16, h, begin, end
        )
    hi, lo = np.zeros(h.shape, np.int8), np.zeros(h.shape, np.int8)
    sums_hi, sums_lo = (np.zeros((len(pairs), fp // 64), np.int32) for _ in range(2))
    scale_h = np.zeros(len(pairs), F)
    quantise.quantise_planes(h, hi, lo, scale_h, sums_hi, sums_lo, 0, len(pairs))
    planes = (hi, lo, sums_hi, sums_lo, scale_h)
    for begin, end in parts(second):
        experts.down_int(
            weights.blob, base, weights.down_offset, pairs.group_start, *planes, out, pairs.order, begin, end
        )
    return out


def expected(weights, x, pairs, hidden):
    out = np.zeros((len(pairs), pad(hidden, 64)), F)
    for number in pairs.experts:
        here = pairs.expert_of_request == number
        out[here] = oracle.expert(weights, int(number), x[pairs.row_of_request[here]])
    return out


def activations(rng, rows, hidden):
    x = np.zeros((rows, pad(hidden, 64)), F)
    x[:, :hidden] = rng.standard_normal((rows, hidden)) * 2
    return x


def drawn_pairs(rng, rows, count, top):
    chosen = (
        np.stack([rng.permutation(count)[:top] for _ in range(rows)]) if rows else np.zeros((0, top), int)
    )
    return Pairs(np.repeat(np.arange(rows), top), chosen.ravel())


@pytest.mark.parametrize("kinds", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize(("hidden", "width"), [(64, 64), (100, 70), (256, 128), (320, 192)])
def test_experts_are_their_twin(rng, same_bits, kinds, hidden, width):
    weights = random_experts(rng, 5, hidden, width, kinds)
    for rows in (0, 1, 2, 3, 5, 23):
        x, pairs = activations(rng, rows, hidden), drawn_pairs(rng, rows, 5, 2)
        same_bits(run(weights, x, pairs, hidden, width), expected(weights, x, pairs, hidden))


@pytest.mark.parametrize("kinds", KINDS.values(), ids=KINDS.keys())
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 6, 7, 64, 65])
def test_one_expert_takes_all_rows(rng, same_bits, kinds, rows):
    weights = random_experts(rng, 3, 128, 64, kinds)
    x, pairs = activations(rng, rows, 128), Pairs(np.arange(rows), np.full(rows, 1))
    same_bits(run(weights, x, pairs, 128, 64), expected(weights, x, pairs, 128))


@pytest.mark.parametrize("kinds", KINDS.values(), ids=KINDS.keys())
def test_a_row_does_not_depend_on_its_batch(rng, same_bits, kinds):
    weights = random_experts(rng, 4, 192, 128, kinds)
    x, pairs = activations(rng, 13, 192), drawn_pairs(rng, 13, 4, 3)
    whole = run(weights, x, pairs, 192, 128)
    for place in range(len(pairs)):
        row, number = pairs.row_of_request[place], pairs.expert_of_request[place]
        alone = run(weights, x[row : row + 1], Pairs([0], [number]), 192, 128)
        same_bits(alone[0], whole[place])


@pytest.mark.parametrize("kinds", KINDS.values(), ids=KINDS.keys())
def test_any_split_gives_the_same_rows(rng, same_bits, kinds):
    weights = random_experts(rng, 3, 128, 128, kinds)
    x, pairs = activations(rng, 9, 128), drawn_pairs(rng, 9, 3, 2)
    whole = run(weights, x, pairs, 128, 128)
    for _ in range(10):
        split = run(weights, x, pairs, 128, 128, lambda items: in_parts(items, rng.integers(0, items + 1, 3)))
        same_bits(split, whole)


@pytest.mark.parametrize("kinds", [[INT8], [INT4], [INT8, INT4, INT4]], ids=["int8", "int4", "mixed"])
@pytest.mark.parametrize("width", [64, 192, 320])
def test_whole_groups_in_one_call_give_the_same_rows(rng, same_bits, kinds, width):
    """Widths whose blocks fill tiles of eight, and leave some over; groups of one to several rows."""
    weights = random_experts(rng, 4, 256, width, kinds)
    x, pairs = activations(rng, 7, 256), drawn_pairs(rng, 7, 4, 3)
    count, out = len(pairs), np.full((len(pairs), 256), np.nan, F)
    q, scale, sums = oracle.quantise_rows(x)
    planes = (np.zeros((count, width), np.int8), np.zeros((count, width), np.int8))
    sums_of = (np.zeros((count, width // 64), np.int32), np.zeros((count, width // 64), np.int32))
    rounded = np.zeros((count, 256), np.uint16)
    scratch = (np.full((count, width), np.nan, F), *planes, *sums_of, np.zeros(count, F))
    blobs = (weights.blob, weights.base[pairs.experts], weights.down_offset)
    for begin, end in in_parts(len(pairs.experts), [1, 2]):
        where = (pairs.group_start, pairs.row_of, q, sums, scale)
        experts.ffn_int(*blobs, *where, *scratch, out, pairs.order, rounded, begin, end)
    same_bits(out, run(weights, x, pairs, 256, width))
    expected_bits = np.zeros((count, 256), np.uint16)
    quantise.round_bf16(out, expected_bits, np.arange(count), 0, count)
    assert (rounded == expected_bits).all()


@pytest.mark.parametrize("kinds", KINDS.values(), ids=KINDS.keys())
def test_special_rows(rng, same_bits, kinds):
    """Zeros, signed zeros, denormals, a ×1000 spike, the clamp of exp on both sides."""
    weights = random_experts(rng, 2, 128, 64, kinds)
    x = activations(rng, 8, 128)
    x[0] = 0
    x[1] = -0.0
    x[2] *= F(1e-41)
    x[3, 17] *= 1000
    x[4] *= F(1e4)
    x[5] *= F(-1e4)
    x[6] *= F(1e-20)
    pairs = Pairs(np.repeat(np.arange(8), 2), np.tile([0, 1], 8))
    out = run(weights, x, pairs, 128, 64)
    same_bits(out, expected(weights, x, pairs, 128))
    assert not out[:4].any()
    assert np.isfinite(out).all()


@pytest.mark.parametrize("fill", ["top", "bottom"])
@pytest.mark.parametrize("kinds", [[INT8], [INT4], [INT8, INT4]], ids=["int8", "int4", "mixed"])
def test_largest_magnitudes(rng, same_bits, kinds, fill):
    weights = random_experts(rng, 2, 1024, 512, kinds, fill)
    x = activations(rng, 5, 1024)
    x[0], x[1] = 3, -3
    pairs = Pairs(np.arange(5), [0, 1, 0, 1, 0])
    same_bits(run(weights, x, pairs, 1024, 512), expected(weights, x, pairs, 1024))


@pytest.mark.parametrize("kinds", [[INT8], [INT4]], ids=["int8", "int4"])
def test_integer_path_is_close_to_the_float_formula(rng, kinds):
    """The whole expert against float64 on the same dequantised weights: 2 % of the largest output."""
    weights = random_experts(rng, 1, 256, 128, kinds)
    x = activations(rng, 16, 256)
    out = run(weights, x, Pairs(np.arange(16), np.zeros(16)), 256, 128)
    dense = [m.scales[:, None] * m.levels.astype(np.float64) for m in (weights.gate_up[0], weights.down[0])]
    pairs = (x.astype(np.float64) @ dense[0].T).reshape(16, -1, 2, 16)
    gate, up = pairs[:, :, 0].reshape(16, -1), pairs[:, :, 1].reshape(16, -1)
    exact = (gate / (1 + np.exp(-gate)) * up) @ dense[1].T
    assert np.abs(out - exact).max() <= 0.02 * np.abs(exact).max()
