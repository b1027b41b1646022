"""RMSNorm: float64 within a bound, one summation order, nothing that is not finite gets through."""

from __future__ import annotations

import numpy as np
import pytest
from numeric import oracle_trunk as oracle

from kernels.norm import rms_norm

F = np.float32
EPS = F(1e-6)


def padded(x, width):
    out = np.zeros((*x.shape[:-1], -(-width // 64) * 64), F)
    out[..., :width] = x
    return out


def run(x, weight, width, ranges=None, eps=EPS):
    out = np.full_like(x, 7)
    finite = np.full(len(x), 9, np.uint8)
    for begin, end in ranges or [(0, len(x))]:
        rms_norm(x, weight, eps, width, out, finite, begin, end)
    return out, finite


@pytest.mark.parametrize("width", [1, 15, 16, 17, 32, 63, 64, 65, 130, 2048])
def test_agrees_with_float64(rng, width):
    x = padded(rng.normal(size=(5, width)) * [[1e-6], [1], [1e3], [1e8], [1e-18]], width)
    weight = padded(rng.normal(size=width), width)
    out, finite = run(x, weight, width)
    exact = oracle.rms_norm(x.astype(np.float64), weight.astype(np.float64), float(EPS), width)
    assert (finite == 1).all()
    assert np.all(np.abs(out - exact) <= 1e-6 * np.abs(exact) + 1e-38)
    assert (out[:, width:] == 0).all()


def test_sums_in_32_lanes_and_one_tree(rng, same_bits):
    """The order is part of the numeric contract: spelled out here with float32 scalars."""
    x = (rng.integers(-4000, 4000, (1, 128)) / 256).astype(F)
    lanes = np.zeros(32, F)
    for i in range(0, 128, 32):  # 12-bit values: the float64 square and sum are exact, so this rounds once
        lanes = (x[0, i : i + 32].astype(np.float64) ** 2 + lanes.astype(np.float64)).astype(F)
    while len(lanes) > 1:
        lanes = lanes[: len(lanes) // 2] + lanes[len(lanes) // 2 :]
    inverse = F(1) / np.sqrt(lanes[0] / F(128) + EPS)
    weight = rng.normal(size=128).astype(F)
    same_bits(run(x, weight, 128)[0], x * inverse * weight)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
def test_a_row_that_is_not_finite_becomes_zero_and_is_reported(rng, same_bits, bad):
    x = rng.normal(size=(3, 128)).astype(F)
    weight = np.ones(128, F)
    clean, _ = run(x, weight, 128)
    x[1, 77] = bad
    out, finite = run(x, weight, 128)
    assert finite.tolist() == [1, 0, 1]
    assert (out[1] == 0).all()
    same_bits(out[[0, 2]], clean[[0, 2]])


def test_zero_and_denormal_rows(rng):
    x = np.zeros((3, 64), F)
    x[1] = -0.0
    x[2] = 1e-41
    out, finite = run(x, np.ones(64, F), 64)
    assert (finite == 1).all()
    assert (out[:2] == 0).all()
    assert np.allclose(out[2], 1e-38, rtol=1e-3, atol=0)  # 1e-41 / sqrt(1e-6), not flushed to zero


def test_rows_do_not_depend_on_the_split_or_their_batch(rng, same_bits):
    x = rng.normal(size=(9, 192)).astype(F)
    weight = rng.normal(size=192).astype(F)
    whole, _ = run(x, weight, 192)
    split, _ = run(x, weight, 192, [(4, 9), (0, 1), (1, 4)])
    same_bits(split, whole)
    same_bits(run(x[3:4], weight, 192)[0], whole[3:4])


def test_an_empty_range_writes_nothing(rng):
    out, finite = run(rng.normal(size=(2, 64)).astype(F), np.ones(64, F), 64, [(1, 1)])
    assert (out == 7).all()
    assert (finite == 9).all()


@pytest.mark.parametrize("mutation", ["eps", "width"])
def test_a_wrong_eps_or_width_is_seen(rng, mutation):
    x = rng.normal(size=(1, 64)).astype(F) * F(1e-2)
    weight = np.ones(64, F)
    right, _ = run(x, weight, 60)
    wrong, _ = run(x, weight, 64) if mutation == "width" else run(x, weight, 60, eps=F(1e-5))
    assert np.abs(right - wrong).max() > 1e-3
