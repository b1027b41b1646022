"""Quantising activations: the kernels against their numpy twins, byte for byte."""

from __future__ import annotations

import numpy as np
import pytest
from numeric import oracle

from kernels import quantise

F = np.float32


def run_rows(x, begin=0, end=None):
    rows, width = x.shape
    end = rows if end is None else end
    q, scale, sums = (
        np.zeros((rows, width), np.int8),
        np.zeros(rows, F),
        np.zeros((rows, width // 64), np.int32),
    )
    quantise.quantise_rows(x, q, scale, sums, begin, end)
    return q, scale, sums


def run_planes(x, begin=0, end=None):
    rows, width = x.shape
    end = rows if end is None else end
    hi, lo = np.zeros((rows, width), np.int8), np.zeros((rows, width), np.int8)
    scale = np.zeros(rows, F)
    sums_hi, sums_lo = np.zeros((rows, width // 64), np.int32), np.zeros((rows, width // 64), np.int32)
    quantise.quantise_planes(x, hi, lo, scale, sums_hi, sums_lo, begin, end)
    return hi, lo, scale, sums_hi, sums_lo


def special_rows(rng):
    """Zero, signed zero, denormal, at and around the 2^-100 threshold, spike, clamp, huge, ties."""
    width = 128
    rows = [
        np.zeros(width),
        np.full(width, -0.0),
        rng.standard_normal(width) * 1e-40,
        np.full(width, 2.0**-100),
        np.full(width, np.nextafter(F(2.0**-100), F(0))),
        np.where(np.arange(width) == 77, 1000.0, rng.standard_normal(width)),
        np.where(np.arange(width) % 2, 3.4e38, -3.4e38),
        (np.arange(width) - 63.5) / 127,
        np.where(np.arange(width) == 0, 127.0, np.arange(width) - 64 + 0.5),
        np.where(np.arange(width) == 5, -1e-25, 1e-41),
    ]
    return np.stack(rows).astype(F)


CASES = [(0, 64), (1, 64), (3, 128), (5, 2048), (65, 192)]


@pytest.mark.parametrize(("rows", "width"), CASES)
def test_one_plane_is_its_twin(rng, same_bits, rows, width):
    x = rng.standard_normal((rows, width)).astype(F) * F(3)
    for actual, expected in zip(run_rows(x), oracle.quantise_rows(x), strict=True):
        same_bits(actual, expected)


@pytest.mark.parametrize(("rows", "width"), CASES)
def test_two_planes_are_their_twin(rng, same_bits, rows, width):
    x = rng.standard_normal((rows, width)).astype(F) * F(3)
    for actual, expected in zip(run_planes(x), oracle.quantise_planes(x), strict=True):
        same_bits(actual, expected)


def test_special_values(rng, same_bits):
    x = special_rows(rng)
    for run, twin in ((run_rows, oracle.quantise_rows), (run_planes, oracle.quantise_planes)):
        for actual, expected in zip(run(x), twin(x), strict=True):
            same_bits(actual, expected)
    q, scale, sums = run_rows(x)
    assert not q[:3].any()
    assert not scale[:3].any()
    assert not sums[:3].any()
    assert scale[3] > 0
    assert scale[4] == 0


def test_planes_stay_within_their_ranges(rng):
    x = np.linspace(-1, 1, 32768, dtype=F).reshape(16, 2048)
    hi, lo, scale, _, _ = run_planes(np.ascontiguousarray(x))
    assert hi.min() >= -127
    assert hi.max() <= 127
    assert lo.min() == -64
    assert lo.max() == 63
    assert np.abs(scale[:, None] * (128.0 * hi + lo) - x).max() <= 0.51 / 16256


def test_never_minus_128(rng):
    q, _, _ = run_rows(rng.uniform(-1, 1, (64, 256)).astype(F))
    assert q.min() == -127


def test_any_split_gives_the_same_rows(rng, same_bits):
    x = rng.standard_normal((7, 128)).astype(F)
    whole = run_rows(x)
    for cut in range(8):
        first, second = run_rows(x, 0, cut), run_rows(x, cut, 7)
        for a, b, expected in zip(first, second, whole, strict=True):
            same_bits(a + b, expected)


def test_sums_of_received_rows(rng, same_bits):
    q = rng.integers(-127, 128, (9, 320)).astype(np.int8)
    q[0] = 127
    q[1] = -127
    sums = np.zeros((9, 5), np.int32)
    quantise.group_sums(q, sums, 0, 9)
    same_bits(sums, oracle.sums64(q))


def test_bf16_rounds_to_nearest_even(rng, same_bits):
    words = rng.integers(0, 2**32, (64, 1024), dtype=np.uint64).astype(np.uint32)
    words[0, :4] = [0x3F808000, 0x3F818000, 0x00000001, 0x00008000]
    words[0, 4:8] = [0x00018000, 0x7F7FFFFF, 0x7F800000, 0x80000000]
    words[1, :3] = [0x7F800001, 0xFFFFFFFF, 0x7FC00000]
    x = words.view(F)
    out = np.zeros(x.shape, np.uint16)
    quantise.round_bf16(x, out, np.arange(len(x)), 0, len(x))
    same_bits(out, oracle.round_bf16(x))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rest", [1.0, 0.0])
def test_a_row_with_nan_or_inf_is_poisoned_and_no_other(bad: float, rest: float) -> None:
    """Its scale is NaN, so that whatever is computed from it is NaN too: it cannot pass as a number."""
    x = np.full((3, 64), rest, np.float32)
    x[1, 17] = bad
    q, scale = np.zeros((3, 64), np.int8), np.zeros(3, np.float32)
    sums = np.zeros((3, 1), np.int32)
    quantise.quantise_rows(x, q, scale, sums, 0, 3)
    assert np.isnan(scale).tolist() == [False, True, False]
    high, low = np.zeros((3, 64), np.int8), np.zeros((3, 64), np.int8)
    quantise.quantise_planes(x, high, low, scale, sums, sums.copy(), 0, 3)
    assert np.isnan(scale).tolist() == [False, True, False]
