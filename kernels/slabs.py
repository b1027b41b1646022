# mypy: disable-error-code="no-untyped-def,no-untyped-call"
"""The whole feed-forward network of one expert for a group of many rows, a slab of rows at a time.

    x -> activation tiles -> gate, up -> SwiGLU -> inner values -> two planes in activation tiles -> down

Inner values lie in scratch as float32 [F/16][pitch][16], in the order in which pairs of blocks finish them;
a slab is as many rows as share a pass over the gate and up blocks. A row's scale needs all of its values, so
that quantising follows, straight into the tiles that down multiplies (kernels/panels.py): the planes never
lie in memory row by row. The pitch is odd, or all of a row's values would fall into one set of the cache.
The bits are those of kernels/quantise.py and of the phases in kernels/prefill.py.
"""

from __future__ import annotations

import numpy as np

from kernels.jit import inline
from kernels.layout import GROUP, ROWS
from kernels.panels import (
    STEP,
    TILE,
    aligned,
    most_at_once,
    multiply_matrix,
    rows_at_once,
    scratch_bytes,
    tile_bytes,
    tiles_of,
)
from kernels.prefill import (
    MANY,
    finish_planes,
    gate_up_at,
    gate_up_scales,
    most_rows,
    pack_rows,
    row_scales_of,
)
from kernels.quantise import TWO_PLANES, factor_of, levels, magnitude, planes_of
from kernels.simd import (
    DOT_BIAS,
    place,
    reduce_add_i32,
    splat_i32,
    store_f32x16,
    store_i8x16,
    store_i32x16,
)

LINE = 64


@inline
def pitch_of(rows):
    """Rows from one block of inner values to the next."""
    return rows | 1


@inline
def tiles_bytes(rows, hidden, width):
    """Bytes of the tiles of a slab of that many rows: first of its inputs, then of its inner values."""
    inner = tiles_of(most_at_once(rows, 2, width), 2)
    return max(scratch_bytes(tiles_of(rows, 1), hidden), scratch_bytes(inner, width))


@inline
def slab_scratch(group_start, begin, end, hidden, width):
    """Scratch for any of groups begin..end; nothing if none has many rows."""
    rows = most_rows(group_start, begin, end)
    if rows < MANY:
        return np.empty(0, np.uint8)
    rows = most_at_once(rows, 1, hidden)
    return aligned(tiles_bytes(rows, hidden, width) + pitch_of(rows) * width * 4)


@inline
def finish_inner(job, scales, x, products, pair, begin, end):
    """Inner values of slab rows begin..end at one gate block."""
    _, _, _, width, rows, scale, values, pitch = job
    for i in range(begin, end):
        y = gate_up_at(x, products, i, width, rows, scale, scales)
        store_f32x16(values, (pair * pitch + i) * LINE, y)


@inline
def pack_planes_of(x, upper, lower, values, at, step, width, scale, pair):
    """Quantise a row of inner values into row `upper` of one activation tile and `lower` of another."""
    top, poison = magnitude(values, at, step, width)
    factor = factor_of(top, poison, TWO_PLANES, scale, pair)
    sum_upper = splat_i32(0)
    sum_lower = sum_upper
    for k in range(0, width, ROWS):
        hi, lo = planes_of(levels(values, at + k // ROWS * step, factor, TWO_PLANES))
        to = STEP + k // GROUP * STEP + k % GROUP
        store_i8x16(x, upper + to, hi)
        store_i8x16(x, lower + to, lo)
        sum_upper = sum_upper + hi
        sum_lower = sum_lower + lo
    store_i32x16(x, upper, splat_i32((DOT_BIAS - 128) * reduce_add_i32(sum_upper)))
    store_i32x16(x, lower, splat_i32((DOT_BIAS - 128) * reduce_add_i32(sum_lower)))


@inline
def clear_row(x, row, width):
    """A row of an activation tile that no activation fills."""
    for at in range(0, width * TILE + STEP, STEP):
        store_i32x16(x, row + at, splat_i32(0))


@inline
def pack_inner(x, values, first, count, pitch, width, scale, pair):
    """Activation tiles 2 i and 2 i + 1: the planes of slab rows first + 16 i on; scale[pair:]: theirs."""
    for i in range(tiles_of(count, 1) * TILE):
        upper = i // TILE * 2 * tile_bytes(width) + i % TILE * LINE
        lower = upper + tile_bytes(width)
        if i < count:
            at = (first + i) * LINE
            pack_planes_of(x, upper, lower, values, at, pitch * LINE, width, scale, pair + i)
        else:
            clear_row(x, upper, width)
            clear_row(x, lower, width)


@inline
def down_rows(x, values, first, count, pitch, w, matrix, width, scale, out, stride, narrow, order, pair):
    """Outputs of slab rows first..first + count, whose pairs are pair..pair + count."""
    pack_inner(x, values, first, count, pitch, width, scale, pair)
    last, to = stride // ROWS, place(order, pair * 8)
    job = (place(w, 0), matrix, 0, last, width, place(scale, pair * 4), out, stride, to, narrow)
    multiply_matrix(
        x, tiles_of(count, 2), count, width, place(w, 0), matrix, 0, last, row_scales_of, finish_planes, job
    )


@inline
def ffn_group(
    x, w, gate_up, down, row_of, q, sums, scale, width, inner_scale, out, stride, narrow, order, start, stop
):
    """Pairs start..stop of the expert whose matrices are at bytes gate_up and down of w.

    x: of slab_scratch; width: of the inner values; out: place of rows of `stride` float32, or of bf16 bits if
    `narrow`; pair p is written to row order[p].
    """
    hidden, size = q.shape[1], rows_at_once(stop - start, 1, q.shape[1])
    tiles, slab = place(x, 0), min(size, stop - start)
    values, pitch = place(x, tiles_bytes(slab, hidden, width)), pitch_of(slab)
    for first in range(start, stop, size):
        rows = row_of[first : min(stop, first + size)]
        pack_rows(x, q, sums, rows)
        job = (place(w, 0), gate_up, 0, hidden, place(row_of, first * 8), place(scale, 0), values, pitch)
        multiply_matrix(
            tiles, tiles_of(len(rows), 1), len(rows), hidden, place(w, 0), gate_up, 0, width // ROWS * 2,
            gate_up_scales, finish_inner, job,
        )  # fmt: skip
        part = rows_at_once(len(rows), 2, width)
        for i in range(0, len(rows), part):
            count = min(part, len(rows) - i)
            down_rows(
                tiles,
                values,
                i,
                count,
                pitch,
                w,
                down,
                width,
                inner_scale,
                out,
                stride,
                narrow,
                order,
                first + i,
            )
