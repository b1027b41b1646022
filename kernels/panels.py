# mypy: disable-error-code="no-untyped-def,no-untyped-call"
"""Many activation rows times packed weights: rows in tile order, int4 expanded, exact products in scratch.

The unit is an *activation tile* of 16 rows. In scratch it is

    int32 [16][16]          where each row's accumulators start: -128 * Σ a in every lane, which undoes the
                            zero point of unsigned weights (kernels/dots.py)
    int8  [K/64][16][64]    the rows, 64 inputs after 64 inputs; rows past the last are zeros

so that a tile register, or a few rows of broadcasts, always reads contiguous bytes: rows as they arrive lie
K bytes apart, and a K of 2048 puts all sixteen in the same few cache sets (0.65 TOPS instead of 1.1).
An int4 block is expanded to m_g (u - 8) + 128, a byte (NUMERICS section 1), and is then an int8 block: the
same integers as kernels/dots.py finds, in any order of summing.

Scratch of one call, at byte offsets: activation tiles, then the products [tiles][2 blocks][16 rows][16]
int32 of a pair of blocks, then that pair's expanded strips.
"""

from __future__ import annotations

import numpy as np

from kernels.blocks import multipliers_at
from kernels.dots import INT4_GROUP_BYTES, NIBBLES
from kernels.jit import inline
from kernels.layout import ALIGN, GROUP, INT8, ROWS
from kernels.simd import (
    bitwise_and,
    load_i32x16,
    load_u8x16,
    multiply_1,
    multiply_2,
    multiply_u16,
    shift_left,
    shift_right,
    splat_i32,
    store_i32x16,
)

TILE = 16
"""Rows of an activation tile."""

STEP = TILE * GROUP
"""Bytes of 64 inputs: of an activation tile, and of an int8 block (16 output rows)."""

STRIP = 2048
"""Inputs of a block pair that are worked on at a time."""

PANEL_BYTES = 1 << 20
"""Activation tiles that are kept for a pass over the weights: half of a core's second-level cache."""

BYTE_ONES = np.int32(0x01010101)
HALF_ONES = np.int32(0x00010001)


@inline
def tile_bytes(width):
    return STEP + width * TILE


@inline
def tiles_of(rows, planes):
    """Activation tiles of a number of rows: 16 rows, or both planes of 16 rows."""
    return (rows + TILE - 1) // TILE * planes


@inline
def rows_at_once(rows, planes, width):
    """Rows to pack for each pass over the weights, so that they fit and passes are equally long."""
    limit = max(2 * TILE, PANEL_BYTES // (planes * tile_bytes(width)) * TILE)
    passes = (rows + limit - 1) // limit
    return ((rows + passes - 1) // passes + 2 * TILE - 1) // (2 * TILE) * (2 * TILE)


@inline
def products_at(tiles, width):
    return tiles * tile_bytes(width)


@inline
def strips_at(tiles, width):
    return products_at(tiles, width) + tiles * 2 * STEP


@inline
def scratch(tiles, width):
    """Bytes for `tiles` activation tiles, their products and two strips, from a multiple of 64 on."""
    whole = np.empty(strips_at(tiles, width) + 2 * min(STRIP, width) * ROWS + ALIGN, np.uint8)
    return whole[-whole.ctypes.data & (ALIGN - 1) :]


@inline
def pack_tile(x, tile, q, sums, rows, first):
    """Activation tile number `tile` of scratch x = the rows rows[first : first + 16] of q [T, K]."""
    width = q.shape[1]
    at = tile * tile_bytes(width)
    count = min(TILE, len(rows) - first)
    nothing = splat_i32(0)
    for i in range(count):
        total = 0
        for group in range(sums.shape[1]):
            total += sums[rows[first + i], group]
        store_i32x16(x, at + i * 64, splat_i32(-128 * total))
    for i in range(count, TILE):
        store_i32x16(x, at + i * 64, nothing)
    for step in range(width // GROUP):
        at += STEP
        for i in range(count):
            store_i32x16(x, at + i * 64, load_i32x16(q, rows[first + i] * width + step * GROUP))
        for i in range(count, TILE):
            store_i32x16(x, at + i * 64, nothing)


@inline
def expand_strip(w, kind, at, width, k, steps, x, to):
    """x[to :] = 64 * steps inputs from k on of an int4 block as an int8 block stores them; int8 is copied."""
    if kind == INT8:
        for byte in range(0, steps * STEP, 64):
            store_i32x16(x, to + byte, load_i32x16(w, at + k * ROWS + byte))
        return
    mask = splat_i32(NIBBLES)
    for g in range(k // GROUP, k // GROUP + steps):
        m = load_u8x16(w, multipliers_at(at, width) + g * ROWS)
        low_zero = splat_i32(128 * BYTE_ONES) - shift_left(m, 3) * splat_i32(BYTE_ONES)
        factor = m * splat_i32(HALF_ONES)
        source = at + g * INT4_GROUP_BYTES
        for j in range(0, INT4_GROUP_BYTES, 64):
            quads = load_i32x16(w, source + j)
            low = multiply_u16(bitwise_and(quads, mask), factor)
            high = multiply_u16(bitwise_and(shift_right(quads, 4), mask), factor)
            store_i32x16(x, to + 2 * j, low + low_zero)
            store_i32x16(x, to + 2 * j + 64, high + low_zero)
        to += STEP


@inline
def strip_bytes(kind, inputs):
    """Bytes of 16 output rows' weights over `inputs` inputs."""
    return inputs * ROWS if kind == INT8 else inputs * ROWS // 2


@inline
def multiply_strip(x, tiles, width, k, steps, w, w0, w1, f, next0, next1, lines):
    """Add 64 * steps inputs from k on to the products of all tiles with two blocks, at w0 and w1 of w."""
    size = tile_bytes(width)
    out = products_at(tiles, width)
    for tile in range(0, tiles, 2):
        s00 = s01 = tile * size
        s10 = s11 = s00 + size
        a0 = s00 + STEP + k * TILE
        if k > 0:
            s00, s01, s10, s11 = out, out + STEP, out + 2 * STEP, out + 3 * STEP
        if tile + 1 < tiles:
            multiply_2(x, s00, s01, s10, s11, a0, a0 + size, w, w0, w1, steps, f, next0, next1, lines, out)
        else:
            multiply_1(x, s00, s01, a0, w, w0, w1, steps, f, next0, next1, lines, out)
        next0 += steps * lines * 64
        next1 += steps * lines * 64
        out += 4 * STEP


@inline
def multiply_blocks(x, tiles, width, w, kind0, kind1, at0, at1, next0, next1):
    """Products of all tiles in scratch with two blocks; the blocks at next0 and next1 are prefetched."""
    strips = strips_at(tiles, width)
    for k in range(0, width, STRIP):
        inputs = min(STRIP, width - k)
        steps = inputs // GROUP
        more = width - k - inputs
        ahead0 = at0 + strip_bytes(kind0, k + inputs) if more else next0
        ahead1 = at1 + strip_bytes(kind1, k + inputs) if more else next1
        lines = (strip_bytes(kind0, GROUP) // 64 * 2 + tiles - 1) // tiles
        if kind0 == INT8 and kind1 == INT8:
            w0, w1 = at0 + k * ROWS, at1 + k * ROWS
            multiply_strip(x, tiles, width, k, steps, w, w0, w1, w, ahead0, ahead1, lines)
        else:
            w0, w1 = strips, strips + inputs * ROWS
            expand_strip(w, kind0, at0, width, k, steps, x, w0)
            expand_strip(w, kind1, at1, width, k, steps, x, w1)
            multiply_strip(x, tiles, width, k, steps, x, w0, w1, w, ahead0, ahead1, lines)
