"""exp, log and the rotary tables against libm in float64, to the last place."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numba import float64, njit

from kernels import maths
from kernels.jit import F32_1, F32_1R, VOID
from kernels.maths import exp_f32x16, log_f64
from kernels.simd import load_f32x16, store_f32x16

F = np.float32


@njit(VOID(F32_1R, F32_1))
def _exp_all(x, out):
    for i in range(0, x.size * 4, 64):
        store_f32x16(out, i, exp_f32x16(load_f32x16(x, i)))


@njit(float64(float64))
def _log(x):
    return log_f64(x)


def exp(x: np.ndarray) -> np.ndarray:
    padded = np.zeros(-(-x.size // 16) * 16, F)
    padded[: x.size] = x
    out = np.empty_like(padded)
    _exp_all(padded, out)
    return out[: x.size]


def ulps(actual: np.ndarray, exact: np.ndarray) -> float:
    spacing = np.spacing(np.abs(exact).astype(actual.dtype)).astype(np.float64)
    return float(np.max(np.abs(actual - exact) / spacing))


def test_exp_is_within_one_ulp_over_its_whole_range():
    x = np.linspace(-87.3, 88.3, 1_000_003).astype(F)
    assert ulps(exp(x), np.exp(x.astype(np.float64))) < 1.0


def test_exp_around_the_ties_of_its_range_reduction():
    n = np.arange(-120, 121)
    x = ((n + 0.5) * math.log(2)).astype(F)
    near = np.concatenate([np.nextafter(x, F(-np.inf)), x, np.nextafter(x, F(np.inf))])
    assert ulps(exp(near), np.exp(near.astype(np.float64))) < 1.0


def test_exp_of_zero_and_of_denormals_is_exactly_one():
    assert (exp(np.array([0.0, -0.0, 1e-45, -1e-45, 1e-39], F)) == 1).all()


def test_exp_clamps_and_never_returns_zero_or_infinity():
    out = exp(np.array([-87.3, -88, -1e30, -np.inf, 88.3, 89, 1e30, np.inf], F))
    assert (out[:4] == out[0]).all()
    assert (out[4:] == out[4]).all()
    assert np.finfo(F).tiny <= out[0]
    assert np.isfinite(out[4])


def test_exp_of_nan_does_not_spread():
    assert exp(np.array([np.nan], F))[0] == exp(np.array([-87.3], F))[0]


def test_log_is_within_one_ulp(rng):
    x = np.exp(rng.uniform(-700, 700, 20_000))
    near_one = 1 + rng.normal(size=2_000) * 1e-6
    edges = np.array([1.0, math.sqrt(0.5), math.sqrt(2), 2.0, 152_000.0, np.finfo(np.float64).tiny])
    values = np.concatenate([x, near_one, edges])
    exact = np.array([math.log(v) for v in values])
    actual = np.array([_log(v) for v in values])
    assert np.all(np.abs(actual - exact) <= np.spacing(np.abs(exact)) * 1.01)
    assert _log(1.0) == 0.0


@pytest.mark.parametrize(("theta", "half", "positions"), [(1e4, 32, 4096), (1e6, 64, 2048), (5e5, 12, 1000)])
def test_rotary_tables_are_correctly_rounded(theta, half, positions):
    inv_freq = (1.0 / theta ** (np.arange(half) / half)).astype(F)
    cos, sin = maths.rotary_tables(inv_freq, positions)
    angle = (np.arange(positions, dtype=F)[:, None] * inv_freq).astype(np.float64)
    assert cos.dtype == sin.dtype == F
    assert np.abs(cos - np.cos(angle)).max() <= 1e-7
    assert np.abs(sin - np.sin(angle)).max() <= 1e-7
    wrong = (cos != np.cos(angle).astype(F)).sum() + (sin != np.sin(angle).astype(F)).sum()
    assert wrong <= 2  # libm is not correctly rounded either


def test_rotary_tables_at_long_contexts():
    inv_freq = np.array([1.0, 0.37], F)
    cos, sin = maths.rotary_tables(inv_freq, 1_000_000)
    last = slice(999_000, None)
    angle = (np.arange(1_000_000, dtype=F)[last, None] * inv_freq).astype(np.float64)
    assert np.abs(cos[last] - np.cos(angle)).max() <= 1e-7
    assert np.abs(sin[last] - np.sin(angle)).max() <= 1e-7


def test_rotary_tables_do_not_depend_on_how_many_are_asked_for(same_bits):
    inv_freq = (1.0 / 1e4 ** (np.arange(7) / 7)).astype(F)
    few, many = maths.rotary_tables(inv_freq, 65), maths.rotary_tables(inv_freq, 777)
    same_bits(few[0], many[0][:65])
    same_bits(few[1], many[1][:65])


def test_rotary_tables_of_nothing():
    cos, sin = maths.rotary_tables(np.zeros(4, F), 0)
    assert cos.shape == sin.shape == (0, 4)


def test_rotary_tables_refuse_angles_past_their_range():
    with pytest.raises(ValueError, match="shorten the context"):
        maths.rotary_tables(np.array([1.0], F), 2_000_000)
