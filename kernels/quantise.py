# mypy: disable-error-code="no-untyped-def,no-untyped-call"
"""Activations to integers, one float scale per row (NUMERICS section 2).

Every kernel here works on rows begin..end of its arrays, so that threads can split them; rows are
C-contiguous and a multiple of 64 wide, zero-padded. A row whose largest magnitude is below 2^-100
becomes zeros with scale 0. A row that holds NaN or Inf gets the scale NaN: all that is computed from it is
NaN, stays in that row, and is met by the next norm, instead of passing as a clamped value.
"""

from __future__ import annotations

import numpy as np

from kernels.jit import F32_1, F32_2R, I8_2, I8_2R, I32_2, I64_1R, INT, U16_2, VOID, inline, kernel
from kernels.layout import GROUP, PLANE, PLANES_MAX
from kernels.simd import (
    bits_of,
    bitwise_and,
    float_of_bits,
    fma,
    load_f32x16,
    load_i8x16,
    max_f32,
    min_f32,
    reduce_add_f32,
    reduce_add_i32,
    reduce_max_f32,
    round_even,
    shift_left,
    shift_right,
    splat_f32,
    splat_i32,
    store_bf16x16,
    store_i8x16,
    to_i32,
)

SMALLEST = np.float32(2.0**-100)
ONE_PLANE = np.float32(127)
TWO_PLANES = np.float32(PLANES_MAX)
ZERO = np.float32(0)
MAGNITUDE = np.int32(0x7FFFFFFF)

# hi = floor((a + 64) / 128). The shift is logical, so a is made positive by a multiple of 128 first.
LIFT = np.int32(64 + PLANES_MAX + PLANE)
UNLIFT = np.int32(PLANES_MAX // PLANE + 1)


@inline
def magnitude(x, at, step, width):
    """(largest magnitude of `width` values, 0 or NaN where they hold NaN or Inf). Both exact in any order.

    Sixteen values lie at byte `at` of x and after every `step` bytes.
    """
    top, poison = splat_f32(ZERO), splat_f32(ZERO)
    for k in range(width // 16):
        value = load_f32x16(x, at + k * step)
        poison = fma(value, splat_f32(ZERO), poison)
        top = max_f32(float_of_bits(bitwise_and(bits_of(value), splat_i32(MAGNITUDE))), top)
    return reduce_max_f32(top), reduce_add_f32(poison)


@inline
def row_max(x, row, width):
    """magnitude of a row of x [T, width]."""
    return magnitude(x, row * width * 4, 64, width)


@inline
def factor_of(top, poison, limit, scale, row):
    """Set scale[row] = absmax / limit and return limit / absmax; both 0 for a zero row."""
    if top < SMALLEST:
        scale[row] = poison
        return ZERO
    scale[row] = top / limit + poison
    return limit / top


@inline
def row_factor(x, row, width, limit, scale):
    """factor_of a row of x [T, width]."""
    top, poison = row_max(x, row, width)
    return factor_of(top, poison, limit, scale, row)


@inline
def levels(x, offset, factor, limit):
    """Sixteen values as integers: roundeven(x * factor), clamped to ±limit while still float."""
    value = round_even(load_f32x16(x, offset) * splat_f32(factor))
    return to_i32(min_f32(max_f32(value, splat_f32(-limit)), splat_f32(limit)))


@kernel(VOID(F32_2R, I8_2, F32_1, I32_2, INT, INT))
def quantise_rows(x, q, scale, sums, begin, end):
    """One int8 plane: x[t] ≈ scale[t] * q[t].

    x [T, K] float32 -> q [T, K] int8 in ±127, scale [T] = absmax / 127, sums [T, K/64] = Σ q of each group.
    """
    width = x.shape[1]
    for row in range(begin, end):
        factor = row_factor(x, row, width, ONE_PLANE, scale)
        for group in range(width // GROUP):
            total = splat_i32(0)
            for k in range(0, GROUP, 16):
                at = row * width + group * GROUP + k
                level = levels(x, at * 4, factor, ONE_PLANE)
                store_i8x16(q, at, level)
                total = total + level
            sums[row, group] = reduce_add_i32(total)


@inline
def planes_of(level):
    """(hi, lo) of sixteen integers 128 hi + lo, lo in -64..63."""
    upper = shift_right(level + splat_i32(LIFT), 7) - splat_i32(UNLIFT)
    return upper, level - shift_left(upper, 7)


@inline
def planes_of_rows(x, hi, lo, scale, sums_hi, sums_lo, begin, end):
    width = x.shape[1]
    for row in range(begin, end):
        factor = row_factor(x, row, width, TWO_PLANES, scale)
        for group in range(width // GROUP):
            total_hi = splat_i32(0)
            total_lo = splat_i32(0)
            for k in range(0, GROUP, 16):
                at = row * width + group * GROUP + k
                level = levels(x, at * 4, factor, TWO_PLANES)
                upper, lower = planes_of(level)
                store_i8x16(hi, at, upper)
                store_i8x16(lo, at, lower)
                total_hi = total_hi + upper
                total_lo = total_lo + lower
            sums_hi[row, group] = reduce_add_i32(total_hi)
            sums_lo[row, group] = reduce_add_i32(total_lo)


@kernel(VOID(F32_2R, I8_2, I8_2, F32_1, I32_2, I32_2, INT, INT))
def quantise_planes(x, hi, lo, scale, sums_hi, sums_lo, begin, end):
    """Two int8 planes: x[t] ≈ scale[t] * (128 * hi[t] + lo[t]).

    x [T, K] float32 -> a = roundeven(x * (16256 / absmax)) split into hi in ±127 and lo in -64..63,
    scale [T] = absmax / 16256, sums_* [T, K/64] = Σ of each plane's groups.
    """
    planes_of_rows(x, hi, lo, scale, sums_hi, sums_lo, begin, end)


@inline
def sums_of_rows(q, sums, begin, end):
    width = q.shape[1]
    for row in range(begin, end):
        for group in range(width // GROUP):
            total = splat_i32(0)
            for k in range(0, GROUP, 16):
                total = total + load_i8x16(q, row * width + group * GROUP + k)
            sums[row, group] = reduce_add_i32(total)


@kernel(VOID(I8_2R, I32_2, INT, INT))
def group_sums(q, sums, begin, end):
    """sums [T, K/64] int32 = Σ of each 64-group of q [T, K] int8, for rows that came over the wire."""
    sums_of_rows(q, sums, begin, end)


@inline
def bf16_of_row(x, out, row):
    width = x.shape[1]
    for k in range(0, width, 16):
        at = row * width + k
        store_bf16x16(out, at * 2, load_f32x16(x, at * 4))


@kernel(VOID(F32_2R, U16_2, I64_1R, INT, INT))
def round_bf16(x, out, rows, begin, end):
    """Rows rows[begin..end] of out [P, N] = bf16 bits of those of x [P, N] float32.

    To nearest even, in integers; NaN stays NaN.
    """
    for i in range(begin, end):
        bf16_of_row(x, out, rows[i])
