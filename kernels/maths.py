"""Our own exp, log, sin and cos: the library functions differ by CPU and by shape, these never do.

Every operation is an IEEE add, subtract, multiply, divide or an explicit fused multiply-add.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kernels.jit import BOOL, F32, inline, kernel
from kernels.simd import (
    float_of_bits,
    fma,
    max_f32,
    min_f32,
    round_even,
    shift_left,
    splat_f32,
    splat_i32,
    to_i32,
)

EXP_LOW, EXP_HIGH = np.float32(-87.3), np.float32(88.3)
"""Arguments are clamped to these: 2^n stays a normal float, exp never returns 0, Inf or a denormal."""

_LOG2_E = np.float32(1.44269504)
_LN2_HIGH = np.float32(0.693359375)  # nine bits: n * _LN2_HIGH is exact
_LN2_LOW = np.float32(-2.12194440e-4)
_ONE = np.float32(1.0)

# exp(r) = 1 + r + r² (c2 + c3 r + … + c6 r⁴) on |r| <= ln2/2, minimax for the relative error (3.2e-9),
# each coefficient rounded to float32 before the next was fitted.
_C2, _C3, _C4 = np.float32(0.49999994), np.float32(0.16666523), np.float32(0.041668292)
_C5, _C6 = np.float32(0.008368532), np.float32(0.0013818296)

_BIAS = np.int32(127)
_MANTISSA = np.int32(23)


@inline
def exp_f32x16(x):  # type: ignore[no-untyped-def]
    """exp of sixteen float32, within 1 ulp for -87.3 <= x <= 88.3; exactly 1 at 0; NaN becomes exp(-87.3)."""
    x = min_f32(max_f32(x, splat_f32(EXP_LOW)), splat_f32(EXP_HIGH))
    n = round_even(x * splat_f32(_LOG2_E))
    r = fma(n, splat_f32(-_LN2_HIGH), x)
    r = fma(n, splat_f32(-_LN2_LOW), r)
    p = fma(splat_f32(_C6), r, splat_f32(_C5))
    p = fma(p, r, splat_f32(_C4))
    p = fma(p, r, splat_f32(_C3))
    p = fma(p, r, splat_f32(_C2))
    p = fma(p, r, splat_f32(_ONE))
    p = fma(p, r, splat_f32(_ONE))
    return p * float_of_bits(shift_left(to_i32(n) + splat_i32(_BIAS), _MANTISSA))


_LN2_HIGH_64 = 6.93147180369123816490e-01
_LN2_LOW_64 = 1.90821492927058770002e-10
_ROOT_HALF_BITS = np.int64(0x3FE6A09E00000000)
_EXPONENT_64 = np.int64(52)


@inline
def log_f64(x):  # type: ignore[no-untyped-def]
    """Natural logarithm of a positive, normal float64, within 1 ulp (fdlibm, e_log.c, W. Kahan's form).

    x = 2^k (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)), s = f / (2 + f), log(1 + f) = f - s (f - R(s²)).
    """
    bits = np.float64(x).view(np.int64)
    k = (bits - _ROOT_HALF_BITS) >> _EXPONENT_64
    f = np.int64(bits - (k << _EXPONENT_64)).view(np.float64) - 1.0
    s = f / (2.0 + f)
    z = s * s
    w = z * z
    even = w * (3.999999999940941908e-01 + w * (2.222219843214978396e-01 + w * 1.531383769920937332e-01))
    odd = z * (
        6.666666666666735130e-01
        + w * (2.857142874366239149e-01 + w * (1.818357216161805012e-01 + w * 1.479819860511658591e-01))
    )
    half = 0.5 * f * f
    scale = np.float64(k)
    return scale * _LN2_HIGH_64 - ((half - (s * (half + (even + odd)) + scale * _LN2_LOW_64)) - f)


# pi/2 in three parts; the first two have 33 bits, so that n * part is exact for n < 2^20 (Cody and Waite).
_HALF_PI = (1.57079632673412561417e00, 6.07710050630396597660e-11, 2.02226624871116645580e-21)
_TWO_OVER_PI = 6.36619772367581382433e-01
MAX_ANGLE = 1.6e6
"""Largest rotary angle in radians: a context of 1.6 million tokens at frequency 1."""

# sin(r) = r + r³ S(r²), cos(r) = 1 - r²/2 + r⁴ C(r²) on |r| <= pi/4 (fdlibm, k_sin.c and k_cos.c).
_SIN = (
    1.58969099521155010221e-10,
    -2.50507602534068634195e-08,
    2.75573137070700676789e-06,
    -1.98412698298579493134e-04,
    8.33333333332248946124e-03,
    -1.66666666666666324348e-01,
)
_COS = (
    -1.13596475577881948265e-11,
    2.08757232129817482790e-09,
    -2.75573143513906633035e-07,
    2.48015872894767294178e-05,
    -1.38888888888741095749e-03,
    4.16666666666666019037e-02,
)


def _polynomial(coefficients: tuple[float, ...], x: NDArray[np.float64]) -> NDArray[np.float64]:
    total = np.full_like(x, coefficients[0])
    for c in coefficients[1:]:
        total = total * x + c
    return total


def rotary_tables(
    inv_freq: NDArray[np.float32], positions: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Rotary tables of positions 0 … positions - 1: (cos, sin), each float32 [positions, len(inv_freq)].

    The angle is float32(position) * inv_freq rounded to float32, as Hugging Face computes it; its sine and
    cosine are evaluated in float64 and rounded once. Elementwise + - × only: the same bits on every CPU.
    Raises ValueError where an angle would exceed MAX_ANGLE, past which the range reduction is not exact.
    """
    inv_freq = np.ascontiguousarray(inv_freq, dtype=np.float32)
    if positions and inv_freq.size and positions * float(np.max(np.abs(inv_freq))) > MAX_ANGLE:
        raise ValueError(f"{positions} positions turn past {MAX_ANGLE:.0f} radians; shorten the context")
    angle = np.arange(positions, dtype=np.float32)[:, None] * inv_freq[None, :]
    a = angle.astype(np.float64)
    n = np.rint(a * _TWO_OVER_PI)
    r = ((a - n * _HALF_PI[0]) - n * _HALF_PI[1]) - n * _HALF_PI[2]
    square = r * r
    sin_r = r + r * square * _polynomial(_SIN, square)
    cos_r = (1.0 - 0.5 * square) + square * square * _polynomial(_COS, square)
    quadrant = n.astype(np.int64) & 3
    swap = (quadrant & 1) == 1
    sin = np.where(swap, cos_r, sin_r)
    cos = np.where(swap, sin_r, cos_r)
    sin = np.where(quadrant >= 2, -sin, sin)
    cos = np.where((quadrant == 1) | (quadrant == 2), -cos, cos)
    return cos.astype(np.float32), sin.astype(np.float32)


@kernel(BOOL(F32))
def keeps_denormals(smallest_normal):  # type: ignore[no-untyped-def]
    """Whether this thread computes with denormals: half of 2^-126 is one, and doubles back to it.

    A library that somebody loaded (built with -ffast-math) may have set flush-to-zero in MXCSR or FPCR.
    """
    half = smallest_normal * np.float32(0.5)
    return half != np.float32(0.0) and half * np.float32(2.0) == smallest_normal
