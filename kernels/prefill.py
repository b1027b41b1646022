# mypy: disable-error-code="no-untyped-def,no-untyped-call"
"""The integer kernels for many rows: the blocked half of kernels/experts.py and kernels/matmul.py.

A group of MANY rows or more is packed once into activation tiles, and every pair of weight blocks is read
once from memory for all of them (kernels/panels.py). The exact integers become outputs by the very functions
that few rows use, so that which way a group goes changes no bit.
"""

from __future__ import annotations

import numpy as np

from kernels.blocks import block_at, row_scales
from kernels.jit import inline
from kernels.layout import ROWS
from kernels.panels import STEP, TILE, multiply_matrix, pack_tile, rows_at_once, scratch, tiles_of
from kernels.simd import load_i32x16
from kernels.tiles import put, put_pair, put_pair_planes, swiglu_int

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
    """Scratch for a group of that many rows; nothing if they are few."""
    if rows < MANY:
        return np.empty(0, np.uint8)
    return scratch(tiles_of(min(rows, rows_at_once(rows, planes, width)), planes), width)


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
def product_at(products, row, planes):
    """Byte offset of a row's 16 integers with the first block; with the second they are STEP further."""
    return products + row // TILE * (2 * planes * STEP) + row % TILE * (ROWS * 4)


@inline
def scales_of_pair(w, matrix, block, other, width):
    at0, kind0 = block_at(w, matrix, block)
    at1, kind1 = block_at(w, matrix, other)
    return row_scales(w, kind0, at0, width), row_scales(w, kind1, at1, width)


@inline
def finish_gate_up(job, x, products, pair, begin, end):
    """Outputs of the pairs first + begin..end, whose input rows are rows[begin..end], at one gate block."""
    w, matrix, block, width, rows, first, scale, out = job
    block += pair
    gate_scales, up_scales = scales_of_pair(w, matrix, 2 * block, 2 * block + 1, width)
    for i in range(begin, end):
        at = product_at(products, i, 1)
        gate, up = load_i32x16(x, at), load_i32x16(x, at + STEP)
        put(out, first + i, block, swiglu_int(gate, up, scale[rows[i]], gate_scales, up_scales))


@inline
def finish_rows(job, x, products, pair, begin, end):
    """Outputs of rows first + begin..end, one plane, in two blocks."""
    w, matrix, block, last, width, first, scale, out = job
    block += 2 * pair
    other = min(block + 1, last - 1)
    s0, s1 = scales_of_pair(w, matrix, block, other, width)
    for row in range(first + begin, first + end):
        at = product_at(products, row - first, 1)
        i0, i1 = load_i32x16(x, at), load_i32x16(x, at + STEP)
        put_pair(out, row, block, other, i0, i1, scale[row], s0, s1)


@inline
def finish_planes(job, x, products, pair, begin, end):
    """Outputs of rows first + begin..end, two planes, in two blocks; row r is written to order[r]."""
    w, matrix, block, last, width, first, scale, out, order = job
    block += 2 * pair
    other = min(block + 1, last - 1)
    s0, s1 = scales_of_pair(w, matrix, block, other, width)
    for row in range(first + begin, first + end):
        at = product_at(products, row - first, 2)
        hi0, hi1 = load_i32x16(x, at), load_i32x16(x, at + STEP)
        lo0, lo1 = load_i32x16(x, at + 2 * STEP), load_i32x16(x, at + 3 * STEP)
        put_pair_planes(out, order[row], block, other, hi0, hi1, lo0, lo1, scale[row], s0, s1)


@inline
def gate_up_many(w, base, group_start, row_of, q, sums, scale, width_blocks, out, begin, end):
    """The items of gate_up_int (kernels/experts.py) whose groups have many rows."""
    width = q.shape[1]
    x = scratch_for(
        most_rows(group_start, begin // width_blocks, (end + width_blocks - 1) // width_blocks), 1, width
    )
    item = begin
    while item < end:
        group, block = item // width_blocks, item % width_blocks
        last = min(width_blocks, block + end - item)
        start, stop = group_start[group], group_start[group + 1]
        if stop - start >= MANY:
            size = rows_at_once(stop - start, 1, width)
            for first in range(start, stop, size):
                rows = row_of[first : min(stop, first + size)]
                pack_rows(x, q, sums, rows)
                job = (w, base[group], block, width, rows, first, scale, out)
                multiply_matrix(
                    x, tiles_of(len(rows), 1), len(rows), width,
                    w, base[group], 2 * block, 2 * last, finish_gate_up, job,
                )  # fmt: skip
        item += last - block


@inline
def planes_many(w, matrix, block, last, hi, lo, sums_hi, sums_lo, start, stop, scale, out, order, x):
    """Rows start..stop of two planes times blocks block..last of a matrix."""
    width = hi.shape[1]
    size = rows_at_once(stop - start, 2, width)
    for first in range(start, stop, size):
        rows = np.arange(first, min(stop, first + size))
        pack_planes(x, hi, lo, sums_hi, sums_lo, rows)
        job = (w, matrix, block, last, width, first, scale, out, order)
        multiply_matrix(
            x, tiles_of(len(rows), 2), len(rows), width, w, matrix, block, last, finish_planes, job
        )


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
            planes_many(
                w, base[group] + down_offset, block, last, hi, lo, sums_hi, sums_lo, start, stop, scale, out,
                order, x,
            )  # fmt: skip
        item += last - block


@inline
def matmul_many(w, base, hi, lo, sums_hi, sums_lo, scale, planes, out, begin, end):
    """matmul_int (kernels/matmul.py) for many rows."""
    rows, width = hi.shape
    x = scratch_for(rows, planes, width)
    every = np.arange(rows)
    if planes == 2:
        planes_many(w, base, begin, end, hi, lo, sums_hi, sums_lo, 0, rows, scale, out, every, x)
        return
    size = rows_at_once(rows, 1, width)
    for first in range(0, rows, size):
        chunk = every[first : first + size]
        pack_rows(x, hi, sums_hi, chunk)
        job = (w, base, begin, end, width, first, scale, out)
        multiply_matrix(
            x, tiles_of(len(chunk), 1), len(chunk), width, w, base, begin, end, finish_rows, job
        )
