# mypy: disable-error-code="no-untyped-def,no-untyped-call"
"""Integer inner products of a few activation rows with two weight blocks: the inner loops of the project.

A tile is a number of int8 activation rows ("vectors": a plane of a row each) times *two* blocks of 16
output rows, so that two streams of weights are read at once and every load serves all vectors. The two
blocks may be the same one. Results are the exact integers

    I = Σ_k (u - 128) * a                  int8
    I = Σ_g m_g Σ_{k in g} (u - 8) * a     int4

so that vectors, blocks and instruction sets can be combined in any way: the bits are the same.

Bound: each expanded weight u - 128 or m_g (u - 8) lies in -128..127 (NUMERICS section 1) and each a in
±127, so |I| <= 128 * 127 * K <= 2,130,706,432 < 2^31 for K <= 131,072 = MAX_WIDTH. Partial sums may pass
2^31; they wrap, and since adding is exact modulo 2^32 the final I is right all the same.
"""

from __future__ import annotations

import numpy as np

from kernels.blocks import multipliers_at
from kernels.jit import inline
from kernels.layout import GROUP, INT8, ROWS
from kernels.simd import (
    DOT_BIAS,
    WIDE_TILE,
    bitwise_and,
    broadcast4,
    dot_u7s8,
    dot_u8s8,
    load_i32x16,
    load_u8x16,
    prefetch,
    shift_right,
    splat_i32,
)

MAX_WIDTH = 131_072
"""Largest padded input width of a matrix."""

AHEAD = 8192
"""Bytes that the few-row tiles prefetch ahead, past the page where the CPU's own prefetcher stops. One row
of OLMoE's experts on a busy machine, share of the read rate: int4 0.69 -> 0.81, int8 about 0.9 either way."""

NIBBLES = np.int32(0x0F0F0F0F)
INT4_GROUP_BYTES = GROUP * ROWS // 2


@inline
def zero_point(sums, row):
    """Start of an int8 accumulator: what dot_u8s8 leaves of the weights' zero point, -(128 - DOT_BIAS) * Σ a."""
    total = 0
    for group in range(sums.shape[1]):
        total += sums[row, group]
    return splat_i32((DOT_BIAS - 128) * total)


@inline
def int8_1(w, at0, at1, q, sums, row, width):
    a0 = zero_point(sums, row)
    b0 = a0
    x = row * width
    for k in range(0, width, 4):
        quad = broadcast4(q, x + k)
        prefetch(w, at0 + k * ROWS + AHEAD)
        prefetch(w, at1 + k * ROWS + AHEAD)
        a0 = dot_u8s8(a0, load_i32x16(w, at0 + k * ROWS), quad)
        b0 = dot_u8s8(b0, load_i32x16(w, at1 + k * ROWS), quad)
    return a0, b0


@inline
def int8_2(w, at0, at1, hi, lo, sums_hi, sums_lo, r0, r1, width):
    a0 = zero_point(sums_hi, r0)
    a1 = zero_point(sums_lo, r1)
    b0 = a0
    b1 = a1
    for k in range(0, width, 4):
        wa = load_i32x16(w, at0 + k * ROWS)
        wb = load_i32x16(w, at1 + k * ROWS)
        prefetch(w, at0 + k * ROWS + AHEAD)
        prefetch(w, at1 + k * ROWS + AHEAD)
        x0 = broadcast4(hi, r0 * width + k)
        x1 = broadcast4(lo, r1 * width + k)
        a0 = dot_u8s8(a0, wa, x0)
        b0 = dot_u8s8(b0, wb, x0)
        a1 = dot_u8s8(a1, wa, x1)
        b1 = dot_u8s8(b1, wb, x1)
    return a0, b0, a1, b1


@inline
def int8_4(w, at0, at1, hi, lo, sums_hi, sums_lo, r0, r1, r2, r3, width):
    a0 = zero_point(sums_hi, r0)
    a1 = zero_point(sums_lo, r1)
    a2 = zero_point(sums_hi, r2)
    a3 = zero_point(sums_lo, r3)
    b0 = a0
    b1 = a1
    b2 = a2
    b3 = a3
    for k in range(0, width, 4):
        wa = load_i32x16(w, at0 + k * ROWS)
        wb = load_i32x16(w, at1 + k * ROWS)
        x0 = broadcast4(hi, r0 * width + k)
        x1 = broadcast4(lo, r1 * width + k)
        x2 = broadcast4(hi, r2 * width + k)
        x3 = broadcast4(lo, r3 * width + k)
        a0 = dot_u8s8(a0, wa, x0)
        b0 = dot_u8s8(b0, wb, x0)
        a1 = dot_u8s8(a1, wa, x1)
        b1 = dot_u8s8(b1, wb, x1)
        a2 = dot_u8s8(a2, wa, x2)
        b2 = dot_u8s8(b2, wb, x2)
        a3 = dot_u8s8(a3, wa, x3)
        b3 = dot_u8s8(b3, wb, x3)
    return a0, b0, a1, b1, a2, b2, a3, b3


@inline
def nibble_dot(acc, low, high, q, x):
    """acc plus 8 inputs of one row, at byte x of q: low nibbles are quad 2j, high nibbles quad 2j + 1."""
    return dot_u7s8(dot_u7s8(acc, low, broadcast4(q, x)), high, broadcast4(q, x + 4))


@inline
def int4_1(w, at0, at1, q, sums, row, width):
    mask = splat_i32(NIBBLES)
    a0 = splat_i32(0)
    b0 = a0
    for g in range(width // GROUP):
        zero = splat_i32(-8 * sums[row, g])
        ga = zero
        gb = zero
        ha = splat_i32(0)
        hb = ha
        x = row * width + g * GROUP
        at = g * INT4_GROUP_BYTES
        for j in range(GROUP // 8):
            wa = load_i32x16(w, at0 + at + j * 64)
            wb = load_i32x16(w, at1 + at + j * 64)
            prefetch(w, at0 + at + j * 64 + AHEAD)
            prefetch(w, at1 + at + j * 64 + AHEAD)
            even = broadcast4(q, x + j * 8)
            odd = broadcast4(q, x + j * 8 + 4)
            ga = dot_u7s8(ga, bitwise_and(wa, mask), even)
            gb = dot_u7s8(gb, bitwise_and(wb, mask), even)
            ha = dot_u7s8(ha, bitwise_and(shift_right(wa, 4), mask), odd)
            hb = dot_u7s8(hb, bitwise_and(shift_right(wb, 4), mask), odd)
        a0 = a0 + load_u8x16(w, multipliers_at(at0, width) + g * ROWS) * (ga + ha)
        b0 = b0 + load_u8x16(w, multipliers_at(at1, width) + g * ROWS) * (gb + hb)
    return a0, b0


@inline
def int4_2(w, at0, at1, hi, lo, sums_hi, sums_lo, r0, r1, width):
    mask = splat_i32(NIBBLES)
    a0 = splat_i32(0)
    b0 = a0
    a1 = a0
    b1 = a0
    for g in range(width // GROUP):
        ga0 = splat_i32(-8 * sums_hi[r0, g])
        ga1 = splat_i32(-8 * sums_lo[r1, g])
        gb0 = ga0
        gb1 = ga1
        x0 = r0 * width + g * GROUP
        x1 = r1 * width + g * GROUP
        at = g * INT4_GROUP_BYTES
        for j in range(GROUP // 8):
            wa = load_i32x16(w, at0 + at + j * 64)
            wb = load_i32x16(w, at1 + at + j * 64)
            prefetch(w, at0 + at + j * 64 + AHEAD)
            prefetch(w, at1 + at + j * 64 + AHEAD)
            la = bitwise_and(wa, mask)
            lb = bitwise_and(wb, mask)
            ha = bitwise_and(shift_right(wa, 4), mask)
            hb = bitwise_and(shift_right(wb, 4), mask)
            ga0 = nibble_dot(ga0, la, ha, hi, x0 + j * 8)
            gb0 = nibble_dot(gb0, lb, hb, hi, x0 + j * 8)
            ga1 = nibble_dot(ga1, la, ha, lo, x1 + j * 8)
            gb1 = nibble_dot(gb1, lb, hb, lo, x1 + j * 8)
        ma = load_u8x16(w, multipliers_at(at0, width) + g * ROWS)
        mb = load_u8x16(w, multipliers_at(at1, width) + g * ROWS)
        a0 = a0 + ma * ga0
        b0 = b0 + mb * gb0
        a1 = a1 + ma * ga1
        b1 = b1 + mb * gb1
    return a0, b0, a1, b1


@inline
def int4_4(w, at0, at1, hi, lo, sums_hi, sums_lo, r0, r1, r2, r3, width):
    mask = splat_i32(NIBBLES)
    a0 = splat_i32(0)
    b0 = a0
    a1 = a0
    b1 = a0
    a2 = a0
    b2 = a0
    a3 = a0
    b3 = a0
    for g in range(width // GROUP):
        ga0 = splat_i32(-8 * sums_hi[r0, g])
        ga1 = splat_i32(-8 * sums_lo[r1, g])
        ga2 = splat_i32(-8 * sums_hi[r2, g])
        ga3 = splat_i32(-8 * sums_lo[r3, g])
        gb0 = ga0
        gb1 = ga1
        gb2 = ga2
        gb3 = ga3
        at = g * INT4_GROUP_BYTES
        for j in range(GROUP // 8):
            wa = load_i32x16(w, at0 + at + j * 64)
            wb = load_i32x16(w, at1 + at + j * 64)
            la = bitwise_and(wa, mask)
            lb = bitwise_and(wb, mask)
            ha = bitwise_and(shift_right(wa, 4), mask)
            hb = bitwise_and(shift_right(wb, 4), mask)
            x = g * GROUP + j * 8
            ga0 = nibble_dot(ga0, la, ha, hi, r0 * width + x)
            gb0 = nibble_dot(gb0, lb, hb, hi, r0 * width + x)
            ga1 = nibble_dot(ga1, la, ha, lo, r1 * width + x)
            gb1 = nibble_dot(gb1, lb, hb, lo, r1 * width + x)
            ga2 = nibble_dot(ga2, la, ha, hi, r2 * width + x)
            gb2 = nibble_dot(gb2, lb, hb, hi, r2 * width + x)
            ga3 = nibble_dot(ga3, la, ha, lo, r3 * width + x)
            gb3 = nibble_dot(gb3, lb, hb, lo, r3 * width + x)
        ma = load_u8x16(w, multipliers_at(at0, width) + g * ROWS)
        mb = load_u8x16(w, multipliers_at(at1, width) + g * ROWS)
        a0 = a0 + ma * ga0
        b0 = b0 + mb * gb0
        a1 = a1 + ma * ga1
        b1 = b1 + mb * gb1
        a2 = a2 + ma * ga2
        b2 = b2 + mb * gb2
        a3 = a3 + ma * ga3
        b3 = b3 + mb * gb3
    return a0, b0, a1, b1, a2, b2, a3, b3


@inline
def dots_1(w, kind, at0, at1, q, sums, row):
    """Integers (block 0, block 1) of q[row]; both blocks are of `kind`."""
    width = q.shape[1]
    if kind == INT8:
        return int8_1(w, at0, at1, q, sums, row, width)
    return int4_1(w, at0, at1, q, sums, row, width)


@inline
def dots_2(w, kind, at0, at1, hi, lo, sums_hi, sums_lo, r0, r1):
    """Integers of hi[r0] and lo[r1], each (block 0, block 1)."""
    width = hi.shape[1]
    if kind == INT8:
        return int8_2(w, at0, at1, hi, lo, sums_hi, sums_lo, r0, r1, width)
    return int4_2(w, at0, at1, hi, lo, sums_hi, sums_lo, r0, r1, width)


@inline
def tile_4(w, kind, at0, at1, hi, lo, sums_hi, sums_lo, r0, r1, r2, r3):
    width = hi.shape[1]
    if kind == INT8:
        return int8_4(w, at0, at1, hi, lo, sums_hi, sums_lo, r0, r1, r2, r3, width)
    return int4_4(w, at0, at1, hi, lo, sums_hi, sums_lo, r0, r1, r2, r3, width)


@inline
def dots_4(w, kind, at0, at1, hi, lo, sums_hi, sums_lo, r0, r1, r2, r3):
    """Integers of hi[r0], lo[r1], hi[r2], lo[r3], each (block 0, block 1)."""
    if WIDE_TILE:
        return tile_4(w, kind, at0, at1, hi, lo, sums_hi, sums_lo, r0, r1, r2, r3)
    # Each block alone: in a tile of one block with itself the second half is the first, and is not computed.
    a0, _, a1, _, a2, _, a3, _ = tile_4(w, kind, at0, at0, hi, lo, sums_hi, sums_lo, r0, r1, r2, r3)
    b0, _, b1, _, b2, _, b3, _ = tile_4(w, kind, at1, at1, hi, lo, sums_hi, sums_lo, r0, r1, r2, r3)
    return a0, b0, a1, b1, a2, b2, a3, b3
