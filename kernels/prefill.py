# mypy: disable-error-code="no-untyped-def,no-untyped-call"
"""The integer kernels for many rows: the blocked half of kernels/experts.py and kernels/matmul.py.

A group of MANY rows or more is packed once into activation tiles, and every pair of weight blocks is read
once from memory for all of them (kernels/panels.py). The exact integers become outputs by the very functions
that few rows use, so that which way a group goes changes no bit.

Outputs are streamed past the caches. They go to a line in each of many rows, rows being pages apart, and a
tile load waits for such a store ahead of it: 256 rows a group ran at half the speed with plain stores.
"""

from __future__ import annotations

import numpy as np

from kernels.blocks import block_at, row_scales
from kernels.jit import inline
from kernels.layout import ROWS
from kernels.panels import (
    STEP,
    TILE,
    aligned,
    most_at_once,
    multiply_matrix,
    offset_at,
    pack_tile,
    product_at,
    rows_at_once,
    scratch_bytes,
    tiles_of,
)
from kernels.simd import (
    keep,
    load_f32,
    load_i32x16,
    load_i64,
    place,
    stream_bf16x16,
    stream_end,
    stream_f32x16,
)
from kernels.tiles import scaled, scaled_planes, swiglu_int

MANY = 16
"""Rows from which a group takes the blocked way."""


@inline
def most_rows(group_start, first, last):
    """Rows of the largest of groups first..last."""
    most = 0
    for group in range(first, last):
        most = max(most, group_start[group + 1] - group_start[group])
    return most


@inline
def scratch_for(rows, planes, width):
    """Scratch for groups of up to that many rows; nothing if they are few."""
    if rows < MANY:
        return np.empty(0, np.uint8)
    return aligned(scratch_bytes(tiles_of(most_at_once(rows, planes, width), planes), width))


@inline
def pack_rows(x, q, sums, rows):
    for tile in range(tiles_of(len(rows), 1)):
        pack_tile(x, tile, q, sums, rows, tile * TILE)


@inline
def pack_planes(x, hi, lo, sums_hi, sums_lo, rows):
    """Tiles 2 i and 2 i + 1 are the two planes of the same 16 rows."""
    for tile in range(tiles_of(len(rows), 1)):
        pack_tile(x, 2 * tile, hi, sums_hi, rows, tile * TILE)
        pack_tile(x, 2 * tile + 1, lo, sums_lo, rows, tile * TILE)


@inline
def scales_of_pair(w, matrix, block, other, width):
    at0, kind0 = block_at(w, matrix, block)
    at1, kind1 = block_at(w, matrix, other)
    return row_scales(w, kind0, at0, width), row_scales(w, kind1, at1, width)


@inline
def gate_up_scales(job, pair):
    w, matrix, block, width, _, _, _, _ = job
    return scales_of_pair(w, matrix, 2 * (block + pair), 2 * (block + pair) + 1, width)


@inline
def gate_up_at(x, products, i, width, rows, scale, scales):
    """Inner values of group row i, whose input is row rows[i], out of a pair's products."""
    gate_scales, up_scales = scales
    at, zero = product_at(products, i, 1), load_i32x16(x, offset_at(i, 0, 1, width))
    gate, up = load_i32x16(x, at) + zero, load_i32x16(x, at + STEP) + zero
    row_scale = load_f32(scale, load_i64(rows, i * 8) * 4)
    return swiglu_int(gate, up, row_scale, gate_scales, up_scales)


@inline
def finish_gate_up(job, scales, x, products, pair, begin, end):
    """Hidden values of group rows begin..end, whose inputs are rows[begin..end], at one gate block."""
    _, _, block, width, rows, scale, out, stride = job
    for i in range(begin, end):
        y = gate_up_at(x, products, i, width, rows, scale, scales)
        stream_f32x16(out, (i * stride + (block + pair) * ROWS) * 4, y)


@inline
def row_scales_of(job, pair):
    w, matrix, block, last, width = job[:5]
    block += 2 * pair
    return scales_of_pair(w, matrix, block, min(block + 1, last - 1), width)


@inline
def finish_rows(job, scales, x, products, pair, begin, end):
    """Outputs of rows begin..end, one plane, in two blocks."""
    _, _, block, last, width, scale, out, stride = job
    block += 2 * pair
    other = min(block + 1, last - 1)
    s0, s1 = scales
    for i in range(begin, end):
        at, zero = product_at(products, i, 1), load_i32x16(x, offset_at(i, 0, 1, width))
        i0, i1 = load_i32x16(x, at) + zero, load_i32x16(x, at + STEP) + zero
        row_scale = load_f32(scale, i * 4)
        stream_f32x16(out, (i * stride + block * ROWS) * 4, scaled(i0, row_scale, s0))
        stream_f32x16(out, (i * stride + other * ROWS) * 4, scaled(i1, row_scale, s1))


@inline
def finish_planes(job, scales, x, products, pair, begin, end):
    """Outputs of rows begin..end, two planes, in two blocks; row i is written to row order[i].

    narrow: out holds bf16 bits, else float32.
    """
    _, _, block, last, width, scale, out, stride, order, narrow = job
    block += 2 * pair
    other = min(block + 1, last - 1)
    s0, s1 = scales
    for i in range(begin, end):
        at, zero = product_at(products, i, 2), load_i32x16(x, offset_at(i, 0, 2, width))
        hi0, hi1 = load_i32x16(x, at) + zero, load_i32x16(x, at + STEP) + zero
        zero = load_i32x16(x, offset_at(i, 1, 2, width))
        lo0, lo1 = load_i32x16(x, at + 2 * STEP) + zero, load_i32x16(x, at + 3 * STEP) + zero
        row_scale = load_f32(scale, i * 4)
        to = load_i64(order, i * 8) * stride
        y0, y1 = scaled_planes(hi0, lo0, row_scale, s0), scaled_planes(hi1, lo1, row_scale, s1)
        if narrow:
            stream_bf16x16(out, (to + block * ROWS) * 2, y0)
            stream_bf16x16(out, (to + other * ROWS) * 2, y1)
        else:
            stream_f32x16(out, (to + block * ROWS) * 4, y0)
            stream_f32x16(out, (to + other * ROWS) * 4, y1)


@inline
def gate_up_group(x, w, matrix, block, last, row_of, q, sums, scale, out, start, stop):
    """Blocks block..last of one expert for its pairs start..stop."""
    width, stride = q.shape[1], out.shape[1]
    size = rows_at_once(stop - start, 1, width)
    for first in range(start, stop, size):
        rows = row_of[first : min(stop, first + size)]
        pack_rows(x, q, sums, rows)
        tiles, places = tiles_of(len(rows), 1), (place(row_of, first * 8), place(scale, 0))
        job = (place(w, 0), matrix, block, width, *places, place(out, first * stride * 4), stride)
        multiply_matrix(
            place(x, 0),
            tiles,
            len(rows),
            width,
            place(w, 0),
            matrix,
            2 * block,
            2 * last,
            gate_up_scales,
            finish_gate_up,
            job,
        )


@inline
def gate_up_many(w, base, group_start, row_of, q, sums, scale, width_blocks, out, begin, end):
    """The items of gate_up_int (kernels/experts.py) whose groups have many rows."""
    most = most_rows(group_start, begin // width_blocks, (end + width_blocks - 1) // width_blocks)
    x = scratch_for(most, 1, q.shape[1])
    item = begin
    while item < end:
        group, block = item // width_blocks, item % width_blocks
        last = min(width_blocks, block + end - item)
        start, stop = group_start[group], group_start[group + 1]
        if stop - start >= MANY:
            gate_up_group(x, w, base[group], block, last, row_of, q, sums, scale, out, start, stop)
        item += last - block
    stream_end()
    keep(x)


@inline
def planes_group(x, w, matrix, block, last, hi, lo, sums_hi, sums_lo, scale, out, order, start, stop):
    """Blocks block..last of a matrix for rows start..stop of two planes; row r is written to order[r]."""
    width, stride = hi.shape[1], out.shape[1]
    size = rows_at_once(stop - start, 2, width)
    for first in range(start, stop, size):
        rows = np.arange(first, min(stop, first + size))
        pack_planes(x, hi, lo, sums_hi, sums_lo, rows)
        tiles, places = tiles_of(len(rows), 2), (place(scale, first * 4), place(out, 0))
        job = (place(w, 0), matrix, block, last, width, *places, stride, place(order, first * 8), False)
        multiply_matrix(
            place(x, 0), tiles, len(rows), width, place(w, 0), matrix, block, last, row_scales_of,
            finish_planes, job,
        )  # fmt: skip


@inline
def down_many(w, base, down_offset, group_start, hi, lo, sums_hi, sums_lo, scale, out, order, begin, end):
    """The items of down_int (kernels/experts.py) whose groups have many rows."""
    blocks = out.shape[1] // ROWS
    x = scratch_for(most_rows(group_start, begin // blocks, (end + blocks - 1) // blocks), 2, hi.shape[1])
    item = begin
    while item < end:
        group, block = item // blocks, item % blocks
        last = min(blocks, block + end - item)
        start, stop = group_start[group], group_start[group + 1]
        if stop - start >= MANY:
            matrix = base[group] + down_offset
            planes_group(x, w, matrix, block, last, hi, lo, sums_hi, sums_lo, scale, out, order, start, stop)
        item += last - block
    stream_end()
    keep(x)


@inline
def rows_group(x, w, matrix, block, last, q, sums, scale, out):
    """Blocks block..last of a matrix for all rows of one plane."""
    width, stride = q.shape[1], out.shape[1]
    size = rows_at_once(len(q), 1, width)
    for first in range(0, len(q), size):
        rows = np.arange(first, min(len(q), first + size))
        pack_rows(x, q, sums, rows)
        places = (place(scale, first * 4), place(out, first * stride * 4))
        job = (place(w, 0), matrix, block, last, width, *places, stride)
        multiply_matrix(
            place(x, 0), tiles_of(len(rows), 1), len(rows), width, place(w, 0), matrix, block, last,
            row_scales_of, finish_rows, job,
        )  # fmt: skip


@inline
def matmul_many(w, base, hi, lo, sums_hi, sums_lo, scale, planes, out, begin, end):
    """matmul_int (kernels/matmul.py) for many rows and at least one block."""
    rows = len(hi)
    x = scratch_for(rows, planes, hi.shape[1])
    if planes == 2:
        order = np.arange(rows)
        planes_group(x, w, base, begin, end, hi, lo, sums_hi, sums_lo, scale, out, order, 0, rows)
        keep(order)
    else:
        rows_group(x, w, base, begin, end, hi, sums_hi, scale, out)
    stream_end()
    keep(x)
