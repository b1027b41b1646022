# mypy: disable-error-code="no-untyped-def,no-untyped-call"
"""Integer inner products of a few activation rows with a few weight blocks: the inner loops of the project.

A tile is 1, 2 or 4 int8 activation rows ("vectors": a plane of a row each) times some blocks of 16 output
rows that lie `step` bytes apart. Every block is a stream of its own through memory, and a core reads several
streams faster than one; every load serves all vectors. Results are the exact integers

    I = Σ_k (u - 128) * a                  int8
    I = Σ_g m_g Σ_{k in g} (u - 8) * a     int4

so that vectors, blocks and instruction sets can be combined in any way: the bits are the same.

Bound: each expanded weight u - 128 or m_g (u - 8) lies in -128..127 (NUMERICS section 1) and each a in
±127, so |I| <= 128 * 127 * K <= 2,130,706,432 < 2^31 for K <= 131,072 = MAX_WIDTH. Partial sums may pass
2^31; they wrap, and since adding is exact modulo 2^32 the final I is right all the same.
"""

from __future__ import annotations

from functools import cache

from kernels.blocks import multipliers_at
from kernels.jit import inline, part, splice
from kernels.layout import GROUP, INT8, ROWS
from kernels.simd import DOT_BIAS, WIDE_TILE, broadcast4, splat_i32
from kernels.simd.wide import (
    dot_lines_u7,
    dot_lines_u8,
    high_nibbles,
    join,
    load_lines,
    load_lines_u8,
    low_nibbles,
    prefetch_lines,
    repeat,
)

MAX_WIDTH = 131_072
"""Largest padded input width of a matrix."""

STREAMS = 8 if WIDE_TILE else 2
"""Blocks of a tile. Read rate of one core over 2, 4 and 8 streams: 0.71, 0.80 and 1 of the best."""

FOUR_STREAMS = 4 if WIDE_TILE else 1
"""Blocks whose sums over four vectors the registers hold."""

AHEAD = 1024
"""Bytes that a stream is prefetched ahead. The CPU's own prefetcher stops at the end of a page and takes a
few lines to start; eight streams of 512 to 2048 bytes are as good, fewer or none 3 to 10 % slower."""

INT4_GROUP_BYTES = GROUP * ROWS // 2


@inline
def zero_point(sums, row):
    """Start of an int8 accumulator: the zero point that the dots leave, (DOT_BIAS - 128) * Σ a."""
    total = 0
    for group in range(sums.shape[1]):
        total += sums[row, group]
    return splat_i32((DOT_BIAS - 128) * total)


@inline
def group_zero(sums, row, group):
    """Start of an int4 group's accumulator, -8 * Σ a."""
    return splat_i32(-8 * sums[row, group])


@inline
def ahead_of(place, body, follow):
    """Where to prefetch when `place` bytes of a stream's `body` are read: past its end, the next tile's."""
    place += AHEAD
    return place if place < body else follow + place - body


@cache
def int8_1(blocks):
    @part
    def tile(w, at, step, follow, q, sums, row):
        width = q.shape[1]
        body, follow = width * ROWS, follow - at
        x = row * width
        a = repeat(zero_point(sums, row), blocks)
        for k in range(0, width, 4):
            prefetch_lines(w, at + ahead_of(k * ROWS, body, follow), step, blocks)
            weights = load_lines(w, at + k * ROWS, step, blocks)
            a = dot_lines_u8(a, weights, broadcast4(q, x + k))
        return a

    return tile


@cache
def int8_2(blocks):
    @part
    def tile(w, at, step, follow, hi, lo, sums_hi, sums_lo, r0, r1):
        width = hi.shape[1]
        body, follow = width * ROWS, follow - at
        x0, x1 = r0 * width, r1 * width
        a = repeat(zero_point(sums_hi, r0), blocks)
        b = repeat(zero_point(sums_lo, r1), blocks)
        for k in range(0, width, 4):
            prefetch_lines(w, at + ahead_of(k * ROWS, body, follow), step, blocks)
            weights = load_lines(w, at + k * ROWS, step, blocks)
            a = dot_lines_u8(a, weights, broadcast4(hi, x0 + k))
            b = dot_lines_u8(b, weights, broadcast4(lo, x1 + k))
        return a, b

    return tile


@cache
def int8_4(blocks):
    @part
    def tile(w, at, step, follow, hi, lo, sums_hi, sums_lo, r0, r1, r2, r3):
        width = hi.shape[1]
        body, follow = width * ROWS, follow - at
        x0, x1, x2, x3 = r0 * width, r1 * width, r2 * width, r3 * width
        a = repeat(zero_point(sums_hi, r0), blocks)
        b = repeat(zero_point(sums_lo, r1), blocks)
        c = repeat(zero_point(sums_hi, r2), blocks)
        d = repeat(zero_point(sums_lo, r3), blocks)
        for k in range(0, width, 4):
            prefetch_lines(w, at + ahead_of(k * ROWS, body, follow), step, blocks)
            weights = load_lines(w, at + k * ROWS, step, blocks)
            a = dot_lines_u8(a, weights, broadcast4(hi, x0 + k))
            b = dot_lines_u8(b, weights, broadcast4(lo, x1 + k))
            c = dot_lines_u8(c, weights, broadcast4(hi, x2 + k))
            d = dot_lines_u8(d, weights, broadcast4(lo, x3 + k))
        return a, b, c, d

    return tile


@inline
def nibble_dot(acc, low, high, q, x):
    """acc plus 8 inputs of one row, at byte x of q: low nibbles are quad 2j, high nibbles quad 2j + 1."""
    return dot_lines_u7(dot_lines_u7(acc, low, broadcast4(q, x)), high, broadcast4(q, x + 4))


@cache
def int4_1(blocks):
    @part
    def tile(w, at, step, follow, q, sums, row):
        width = q.shape[1]
        body, follow = width * ROWS // 2, follow - at
        multipliers = multipliers_at(at, width)
        a = repeat(splat_i32(0), blocks)
        for g in range(width // GROUP):
            ga = repeat(group_zero(sums, row, g), blocks)
            place = g * INT4_GROUP_BYTES
            x = row * width + g * GROUP
            for j in range(0, GROUP, 8):
                prefetch_lines(w, at + ahead_of(place + j * 8, body, follow), step, blocks)
                weights = load_lines(w, at + place + j * 8, step, blocks)
                low, high = low_nibbles(weights), high_nibbles(weights)
                ga = nibble_dot(ga, low, high, q, x + j)
            a = a + load_lines_u8(w, multipliers + g * ROWS, step, blocks) * ga
        return a

    return tile


@cache
def int4_2(blocks):
    @part
    def tile(w, at, step, follow, hi, lo, sums_hi, sums_lo, r0, r1):
        width = hi.shape[1]
        body, follow = width * ROWS // 2, follow - at
        multipliers = multipliers_at(at, width)
        a = repeat(splat_i32(0), blocks)
        b = a
        for g in range(width // GROUP):
            ga = repeat(group_zero(sums_hi, r0, g), blocks)
            gb = repeat(group_zero(sums_lo, r1, g), blocks)
            place = g * INT4_GROUP_BYTES
            x0, x1 = r0 * width + g * GROUP, r1 * width + g * GROUP
            for j in range(0, GROUP, 8):
                prefetch_lines(w, at + ahead_of(place + j * 8, body, follow), step, blocks)
                weights = load_lines(w, at + place + j * 8, step, blocks)
                low, high = low_nibbles(weights), high_nibbles(weights)
                ga = nibble_dot(ga, low, high, hi, x0 + j)
                gb = nibble_dot(gb, low, high, lo, x1 + j)
            m = load_lines_u8(w, multipliers + g * ROWS, step, blocks)
            a = a + m * ga
            b = b + m * gb
        return a, b

    return tile


@cache
def int4_4(blocks):
    @part
    def tile(w, at, step, follow, hi, lo, sums_hi, sums_lo, r0, r1, r2, r3):
        width = hi.shape[1]
        body, follow = width * ROWS // 2, follow - at
        multipliers = multipliers_at(at, width)
        a = repeat(splat_i32(0), blocks)
        b = a
        c = a
        d = a
        for g in range(width // GROUP):
            ga = repeat(group_zero(sums_hi, r0, g), blocks)
            gb = repeat(group_zero(sums_lo, r1, g), blocks)
            gc = repeat(group_zero(sums_hi, r2, g), blocks)
            gd = repeat(group_zero(sums_lo, r3, g), blocks)
            place = g * INT4_GROUP_BYTES
            for j in range(0, GROUP, 8):
                prefetch_lines(w, at + ahead_of(place + j * 8, body, follow), step, blocks)
                weights = load_lines(w, at + place + j * 8, step, blocks)
                low, high = low_nibbles(weights), high_nibbles(weights)
                x = g * GROUP + j
                ga = nibble_dot(ga, low, high, hi, r0 * width + x)
                gb = nibble_dot(gb, low, high, lo, r1 * width + x)
                gc = nibble_dot(gc, low, high, hi, r2 * width + x)
                gd = nibble_dot(gd, low, high, lo, r3 * width + x)
            m = load_lines_u8(w, multipliers + g * ROWS, step, blocks)
            a = a + m * ga
            b = b + m * gb
            c = c + m * gc
            d = d + m * gd
        return a, b, c, d

    return tile


@cache
def tile_1(blocks):
    """tile(w, kind, at, step, follow, q, sums, row): integers of q[row] with the blocks from byte `at` of w.

    All blocks are of `kind`, `step` bytes apart (any number for one block); follow: where the reading goes
    on, for the prefetch. Returns a wide value, a piece a block.
    """
    int8, int4 = int8_1(blocks), int4_1(blocks)

    @splice
    def tile(w, kind, at, step, follow, q, sums, row):
        if kind == INT8:
            return int8(w, at, step, follow, q, sums, row)
        return int4(w, at, step, follow, q, sums, row)

    return tile


@cache
def tile_2(blocks):
    """The same of hi[r0] and lo[r1]: two wide values."""
    int8, int4 = int8_2(blocks), int4_2(blocks)

    @splice
    def tile(w, kind, at, step, follow, hi, lo, sums_hi, sums_lo, r0, r1):
        if kind == INT8:
            return int8(w, at, step, follow, hi, lo, sums_hi, sums_lo, r0, r1)
        return int4(w, at, step, follow, hi, lo, sums_hi, sums_lo, r0, r1)

    return tile


@cache
def tile_4(blocks):
    """The same of hi[r0], lo[r1], hi[r2], lo[r3]: four wide values."""
    if blocks > FOUR_STREAMS:
        return _halves(blocks // 2)
    int8, int4 = int8_4(blocks), int4_4(blocks)

    @splice
    def tile(w, kind, at, step, follow, hi, lo, sums_hi, sums_lo, r0, r1, r2, r3):
        if kind == INT8:
            return int8(w, at, step, follow, hi, lo, sums_hi, sums_lo, r0, r1, r2, r3)
        return int4(w, at, step, follow, hi, lo, sums_hi, sums_lo, r0, r1, r2, r3)

    return tile


def _halves(blocks):
    """tile_4 of twice as many blocks, one half after the other."""
    half = tile_4(blocks)

    @splice
    def tile(w, kind, at, step, follow, hi, lo, sums_hi, sums_lo, r0, r1, r2, r3):
        middle = at + blocks * step
        a0, b0, c0, d0 = half(w, kind, at, step, middle, hi, lo, sums_hi, sums_lo, r0, r1, r2, r3)
        a1, b1, c1, d1 = half(w, kind, middle, step, follow, hi, lo, sums_hi, sums_lo, r0, r1, r2, r3)
        return join(a0, a1), join(b0, b1), join(c0, c1), join(d0, d1)

    return tile
