"""Fused row kernels are the kernels that they stand for, byte for byte, whatever the split."""

from __future__ import annotations

import numpy as np
import pytest

from kernels import fused, gate, norm, quantise

F = np.float32
EPS = F(1e-6)
ROWS, HIDDEN, PADDED, EXPERTS, TOP_K = 9, 300, 320, 41, 5


def inputs(rng):
    x = rng.normal(size=(ROWS, PADDED)).astype(F)
    x[:, HIDDEN:] = 0
    x[3, 7], x[5] = np.inf, 0
    weight = np.pad(rng.normal(size=HIDDEN).astype(F), (0, PADDED - HIDDEN))
    return x, weight, rng.normal(size=(3, PADDED, 16)).astype(F)


def empty_normed():
    shapes = (
        ((ROWS, PADDED), F),
        (ROWS, np.uint8),
        ((ROWS, PADDED), np.int8),
        (ROWS, F),
        ((ROWS, 5), np.int32),
    )
    return [np.zeros(shape, dtype) for shape, dtype in shapes]


def empty_choice():
    return [np.zeros((ROWS, 48), F), np.zeros((ROWS, TOP_K), np.int32), np.zeros((ROWS, TOP_K), F)]


@pytest.mark.parametrize("ranges", [[(0, ROWS)], [(4, ROWS), (0, 1), (1, 4)]])
@pytest.mark.parametrize("renormalise", [0, 1])
def test_they_are_the_kernels_one_after_another(rng, same_bits, ranges, renormalise):
    x, weight, gates = inputs(rng)
    out, finite, q, scale, sums = wanted = empty_normed()
    logits, ids, weights = choice = empty_choice()
    norm.rms_norm(x, weight, EPS, HIDDEN, out, finite, 0, ROWS)
    quantise.quantise_rows(out, q, scale, sums, 0, ROWS)
    gate.gate_logits(out, gates, logits, 0, ROWS)
    gate.gate_topk(logits, EXPERTS, TOP_K, renormalise, ids, weights, 0, ROWS)
    assert finite.tolist() == [1, 1, 1, 0, 1, 1, 1, 1, 1]
    normed, gated, chosen = empty_normed(), empty_normed(), empty_choice()
    for begin, end in ranges:
        fused.norm_rows(x, weight, EPS, HIDDEN, *normed, begin, end)
        options = (gates, EXPERTS, TOP_K, renormalise)
        fused.gate_rows(x, weight, EPS, HIDDEN, *gated, *options, *chosen, begin, end)
    for found, right in zip([*normed, *gated, *chosen], [*wanted, *wanted, *choice], strict=True):
        same_bits(found, right)
