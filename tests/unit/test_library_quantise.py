"""Float rows to integers: bounds, exactness, errors against plain arithmetic."""

from __future__ import annotations

import numpy as np
import pytest

from cluster.library.quantise import bf16_bits, bf16_values, quantise_int4, quantise_int8
from kernels import layout

RNG = np.random.default_rng(7)


def normal(rows: int, width: int) -> np.ndarray:
    return RNG.normal(size=(rows, width)).astype(np.float32)


def decode4(q) -> np.ndarray:
    m = q.multiplier.astype(np.float64).repeat(layout.GROUP, axis=1)
    return q.scale[:, None].astype(np.float64) * m * (q.u.astype(np.float64) - 8)


def relative(found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    return ((found - wanted) ** 2).sum(axis=1) / (wanted.astype(np.float64) ** 2).sum(axis=1)


@pytest.mark.parametrize("size", [1e-30, 1e-3, 1.0, 1e30, 3e38])
def test_int8_is_within_half_a_step_at_every_scale(size: float) -> None:
    weights = np.clip(normal(48, 192), -1, 1) * np.float32(size)
    q = quantise_int8(weights)
    step = np.abs(weights).max(axis=1).astype(np.float64) / 127
    found = q.scale[:, None].astype(np.float64) * (q.u.astype(np.float64) - 128)
    assert np.all(np.abs(found - weights) <= step[:, None] * 0.5001)
    assert q.u.min() >= 1  # -128 would overflow where |w| meets the sign trick of AVX2
    np.testing.assert_allclose(q.error, relative(found, weights), rtol=1e-2)


@pytest.mark.parametrize("size", [1e-29, 1.0, 1e36])
def test_int4_integers_fit_and_the_error_is_the_reported_one(size: float) -> None:
    weights = normal(80, 256) * np.float32(size)
    q = quantise_int4(weights)
    assert q.u.max() <= 15
    assert q.multiplier.min() >= 1
    assert q.multiplier.max() <= layout.MAX_MULTIPLIER
    expanded = q.multiplier.astype(int).repeat(layout.GROUP, axis=1) * (q.u.astype(int) - 8)
    assert expanded.min() >= -128
    assert expanded.max() <= 127
    error = relative(decode4(q), weights)
    np.testing.assert_allclose(q.error, error, rtol=1e-2)
    assert error.mean() < 0.0100  # normal weights: 0.0093; without the search 0.0103


def test_int4_is_better_than_the_plain_scales() -> None:
    weights = normal(64, 512)
    groups = np.abs(weights).reshape(64, -1, layout.GROUP).max(axis=2) / 7
    row = groups.max(axis=1, keepdims=True) / layout.MAX_MULTIPLIER
    step = (row * np.clip(np.rint(groups / row), 1, 15)).repeat(layout.GROUP, axis=1)
    plain = step * np.clip(np.rint(weights / step), -8, 7)
    assert quantise_int4(weights).error.mean() < 0.95 * relative(plain, weights).mean()


def test_zero_rows_and_zero_groups_decode_to_zero() -> None:
    weights = normal(16, 192)
    weights[3] = 0
    weights[5] = 2.0**-120  # below what an activation row may hold, too
    weights[:, 64:128] = 0
    q8, q4 = quantise_int8(weights), quantise_int4(weights)
    for row in (3, 5):
        assert q8.scale[row] == 0
        assert q4.scale[row] == 0
        assert (q8.u[row] == 128).all()
        assert (q4.u[row] == 8).all()
    assert (q4.u[:, 64:128] == 8).all()
    assert q4.multiplier.min() == 1
    assert q4.error[3] == q8.error[3] == 0


def test_a_group_of_outliers_is_seen_in_the_group_error_and_counted() -> None:
    weights = normal(32, 2048)
    assert quantise_int4(weights).flattened == 0
    weights[:, 64:128] *= 32
    q = quantise_int4(weights)
    assert q.error.mean() < 0.02  # of the energy, nearly all of it in the large group
    assert q.group_error.mean() > 0.03
    assert q.flattened > 0.9 * q.multiplier.size


def test_a_block_quantises_alike_whatever_its_neighbours() -> None:
    weights = normal(3008, 64)
    q8, q4 = quantise_int8(weights), quantise_int4(weights)
    for start in (0, 1776, 2992):
        block = slice(start, start + 16)
        alone8, alone4 = quantise_int8(weights[block]), quantise_int4(weights[block])
        np.testing.assert_array_equal(alone8.u, q8.u[block])
        np.testing.assert_array_equal(alone8.error, q8.error[block])
        for field in ("u", "multiplier", "scale", "error", "group_error"):
            np.testing.assert_array_equal(getattr(alone4, field), getattr(q4, field)[block])


def test_bf16_rounds_to_nearest_even() -> None:
    bits = np.array(
        [0x3F808000, 0x3F818000, 0x3F808001, 0xBF817FFF, 0x00000001, 0x80000000, 0x7F7F7FFF], np.uint32
    )
    rounded = bf16_bits(bits.view(np.float32))
    assert [hex(int(b)) for b in rounded] == [
        "0x3f80",
        "0x3f82",
        "0x3f81",
        "0xbf81",
        "0x0",
        "0x8000",
        "0x7f7f",
    ]
    np.testing.assert_array_equal(bf16_bits(bf16_values(rounded)), rounded)
