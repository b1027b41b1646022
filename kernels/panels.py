# mypy: disable-error-code="no-untyped-def,no-untyped-call"
"""Many activation rows times a packed matrix: rows in tile order, int4 expanded, exact products in scratch.

The unit is an *activation tile* of 16 rows. In scratch it is

    int32 [16][16]          what is added to each row's products: (DOT_BIAS - 128) * Σ a in every lane, which
                            undoes the zero point of unsigned weights (kernels/dots.py)
    int8  [K/64][16][64]    the rows, 64 inputs after 64 inputs; rows past the last are zeros

so that a tile register, or a few broadcasts, always reads contiguous bytes: rows as they arrive lie K bytes
apart, and a K of 2048 puts all sixteen in the same few cache sets. An int4 block is expanded to
m_g (u - 8) + 128, a byte (NUMERICS section 1), and is then an int8 block: the same integers as
kernels/dots.py finds, in any order of summing.

Blocks are taken in pairs, a *strip* of inputs at a time. While one strip is multiplied, each of its turns
(128 inputs of two tiles) also does a share of what comes before and after: it expands the next strip, or
asks for it from memory, and turns products of the last pair into outputs (`finish`). Tile instructions
leave the vector units free for that.

All of that happens on *places* (kernels.simd.place), not on arrays: an array in a tuple is counted each time
it is taken out, with a locked instruction that waits for every load and store under way (2.5 times slower).
"""

from __future__ import annotations

import numpy as np

from kernels.blocks import block_at, multipliers_at
from kernels.dots import INT4_GROUP_BYTES
from kernels.jit import inline
from kernels.layout import ALIGN, GROUP, INT8, ROWS
from kernels.simd import (
    DOT_BIAS,
    bitwise_and,
    load_i32x16,
    load_u8x16,
    multiply_1,
    multiply_2,
    multiply_u16,
    place,
    prefetch_l2,
    shift_left,
    shift_right,
    splat_i32,
    store_i32x16,
    tiles_begin,
    tiles_end,
)

TILE = 16
"""Rows of an activation tile."""

STEP = TILE * GROUP
"""Bytes of 64 inputs: of an activation tile, and of an int8 block of 16 output rows."""

STRIP = 2048
"""Inputs of a pair of blocks that are expanded at a time."""

STRIP_BYTES = STRIP * ROWS

PANEL_BYTES = 1 << 20
"""Activation tiles that are kept for a pass over the weights: half of a core's second-level cache."""

NIBBLES = np.int32(0x0F0F0F0F)
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
def rows_that_fit(planes, width):
    return max(2 * TILE, PANEL_BYTES // (planes * tile_bytes(width)) * TILE)


@inline
def most_at_once(rows, planes, width):
    """Rows that are ever packed together of a group of `rows` rows, or of one of fewer.

    A smaller group may take more at once than a larger one, which is cut into equally long passes.
    """
    return min(rows, (rows_that_fit(planes, width) + 2 * TILE - 1) // (2 * TILE) * (2 * TILE))


@inline
def rows_at_once(rows, planes, width):
    """Rows to pack for each pass over the weights, so that they fit and passes are equally long."""
    limit = rows_that_fit(planes, width)
    passes = (rows + limit - 1) // limit
    return ((rows + passes - 1) // passes + 2 * TILE - 1) // (2 * TILE) * (2 * TILE)


@inline
def product_at(products, row, planes):
    """Byte offset of a row's 16 integers with the first block of a pair.

    With the second block they are STEP further, those of the second plane 2 STEP further.
    """
    return products + row // TILE * (2 * planes * STEP) + row % TILE * (ROWS * 4)


@inline
def offset_at(row, plane, planes, width):
    """Byte offset of what is added to each of a row's integers."""
    return (row // TILE * planes + plane) * tile_bytes(width) + row % TILE * (ROWS * 4)


@inline
def products_at(tiles, width, pair):
    """Byte offset in scratch of a pair's products, [tile][block][16 rows][16] int32; two pairs are alive."""
    return tiles * tile_bytes(width) + (pair & 1) * tiles * 2 * STEP


@inline
def strips_at(tiles, width, number):
    """Byte offset in scratch of an expanded strip of two blocks; two strips are alive."""
    return tiles * (tile_bytes(width) + 4 * STEP) + (number & 1) * 2 * STRIP_BYTES


@inline
def scratch_bytes(tiles, width):
    """Bytes for `tiles` activation tiles, their products and the strips they are multiplied with."""
    return strips_at(tiles, width, 0) + 4 * STRIP_BYTES


@inline
def aligned(size):
    """Bytes from a cache line's first on, at least `size`. Whoever works on places in it keeps it."""
    whole = np.empty(size + ALIGN, np.uint8)
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
        store_i32x16(x, at + i * 64, splat_i32((DOT_BIAS - 128) * total))
    for i in range(count, TILE):
        store_i32x16(x, at + i * 64, nothing)
    for step in range(width // GROUP):
        at += STEP
        for i in range(count):
            store_i32x16(x, at + i * 64, load_i32x16(q, rows[first + i] * width + step * GROUP))
        for i in range(count, TILE):
            store_i32x16(x, at + i * 64, nothing)


@inline
def expand_group(w, at, far, width, g, x, to):
    """x[to :] = group g of the int4 block at `at` as an int8 block has it; the block at `far` is asked for.

    A nibble is at most 15 and m at most 15: products of two nibbles at once stay in their bytes.
    """
    m = load_u8x16(w, multipliers_at(at, width) + g * ROWS)
    zero = splat_i32(128 * BYTE_ONES) - shift_left(m, 3) * splat_i32(BYTE_ONES)
    factor = m * splat_i32(HALF_ONES)
    mask = splat_i32(NIBBLES)
    for byte in range(0, INT4_GROUP_BYTES, 64):
        quads = load_i32x16(w, at + g * INT4_GROUP_BYTES + byte)
        prefetch_l2(w, far + g * INT4_GROUP_BYTES + byte)
        even = multiply_u16(bitwise_and(quads, mask), factor)
        odd = multiply_u16(bitwise_and(shift_right(quads, 4), mask), factor)
        store_i32x16(x, to + 2 * byte, even + zero)
        store_i32x16(x, to + 2 * byte + 64, odd + zero)


@inline
def fetch_group(w, in_place, kind, at, far, width, g, x, to):
    """Group g of the block at `at`, ready to be multiplied: asked for, copied or expanded."""
    if in_place:
        for byte in range(0, STEP, 64):
            prefetch_l2(w, at + g * STEP + byte)
    elif kind == INT8:
        for byte in range(0, STEP, 64):
            store_i32x16(x, to + byte, load_i32x16(w, at + g * STEP + byte))
    else:
        expand_group(w, at, far, width, g, x, to)


@inline
def strip_of(w, matrix, first, last, width, tiles, number):
    """Strip `number` of blocks first..last: what fetch_turn and multiply_strip have to know of it.

    An odd block at the end is paired with itself.
    """
    strips = (width + STRIP - 1) // STRIP
    block = min(first + number // strips * 2, last - 1)
    other = min(block + 1, last - 1)
    at0, kind0 = block_at(w, matrix, block)
    at1, kind1 = block_at(w, matrix, other)
    far0, _ = block_at(w, matrix, min(block + 2, last - 1))
    far1, _ = block_at(w, matrix, min(other + 2, last - 1))
    k = number % strips * STRIP
    steps = min(STRIP, width - k) // GROUP
    in_place = kind0 == INT8 and kind1 == INT8
    return in_place, kind0, kind1, at0, at1, far0, far1, k, steps, strips_at(tiles, width, number)


@inline
def fetch_groups(x, w, width, strip, begin, end):
    """Parts begin..end of a strip: part 2 i is group i of the first block, 2 i + 1 of the second."""
    in_place, kind0, kind1, at0, at1, far0, far1, k, steps, to = strip
    for part in range(begin, min(end, 2 * steps)):
        g = part // 2
        if part % 2 == 0:
            fetch_group(w, in_place, kind0, at0, far0, width, k // GROUP + g, x, to + g * STEP)
        else:
            fetch_group(w, in_place, kind1, at1, far1, width, k // GROUP + g, x, to + STRIP_BYTES + g * STEP)


@inline
def side_work(work, turn):
    """A turn's share of fetching the next strip and of finishing the last pair."""
    x, w, width, strip, fetched, started, finish, job, scales, products, pair, rows, finished = work
    fetch_groups(x, w, width, strip, (turn - started) * fetched, (turn - started + 1) * fetched)
    if pair >= 0:
        finish(job, scales, x, products, pair, turn * finished, min(rows, (turn + 1) * finished))


@inline
def turns_of(inputs):
    """Turns of a pass over a strip: two times 64 inputs each (kernels/simd/multiply.py)."""
    return (inputs // GROUP + 1) // 2


@inline
def multiply_strip(x, tiles, width, w, strip, out, work, turn):
    """Add a strip to the products, at `out`, of all tiles with its two blocks."""
    in_place, _, _, at0, at1, _, _, k, steps, to = strip
    w0 = place(w, at0 + k * ROWS) if in_place else place(x, to)
    w1 = place(w, at1 + k * ROWS) if in_place else place(x, to + STRIP_BYTES)
    size = tile_bytes(width)
    for tile in range(0, tiles, 2):
        a0 = tile * size + STEP + k * TILE
        if tile + 1 < tiles:
            multiply_2(x, a0, a0 + size, w0, w1, steps, k == 0, out, side_work, work, turn)
        else:
            multiply_1(x, a0, w0, w1, steps, k == 0, out, side_work, work, turn)
        turn += (steps + 1) // 2
        out += 4 * STEP


@inline
def multiply_matrix(x, tiles, rows, width, w, matrix, first, last, scales_of, finish, job):
    """Blocks first..last of the matrix at byte `matrix` of w, times the `rows` rows in x's activation tiles.

    x and w are places. Pair i is blocks first + 2 i and the next one, or itself at the end. scales_of(job, i)
    loads what is the same for all of its rows, and finish(job, scales, x, products, i, begin, end) turns rows
    begin..end of its products, at byte `products` of x, into outputs.
    """
    strips = (width + STRIP - 1) // STRIP
    pairs = (last - first + 1) // 2
    passes = (tiles + 1) // 2
    finished = (rows + passes * turns_of(width) - 1) // (passes * turns_of(width))
    strip = strip_of(w, matrix, first, last, width, tiles, 0)
    fetch_groups(x, w, width, strip, 0, 2 * width // GROUP)
    tiles_begin()
    for number in range(pairs * strips):
        pair, started = number // strips, number % strips * turns_of(STRIP) * passes
        following = strip_of(w, matrix, first, last, width, tiles, number + 1)
        turns = passes * turns_of(strip[8] * GROUP)
        fetched = (2 * STRIP // GROUP + turns - 1) // turns
        if number + 1 == pairs * strips:
            fetched = 0
        before, scales = products_at(tiles, width, pair - 1), scales_of(job, max(0, pair - 1))
        work = (
            x,
            w,
            width,
            following,
            fetched,
            started,
            finish,
            job,
            scales,
            before,
            pair - 1,
            rows,
            finished,
        )
        multiply_strip(x, tiles, width, w, strip, products_at(tiles, width, pair), work, started)
        strip = following
    tiles_end()
    finish(job, scales_of(job, pairs - 1), x, products_at(tiles, width, pairs - 1), pairs - 1, 0, rows)
