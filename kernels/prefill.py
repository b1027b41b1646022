# mypy: disable-error-code="no-untyped-def,no-untyped-call"
"""The integer kernels for many rows: the blocked half of kernels/experts.py and kernels/matmul.py.

A group of MANY rows or more is packed once into activation tiles (kernels/panels.py); each pair of weight
blocks is then read once from memory, expanded if it is int4, multiplied with all of them, and its products
become outputs by the very functions that few rows use. Which way a group goes changes no bit: the integers
are exact, and the float operations on them are the same in the same order.
"""

from __future__ import annotations

import numpy as np

from kernels.blocks import block_at, pair_at, row_scales
from kernels.jit import inline
from kernels.layout import ROWS
from kernels.panels import (
    STEP,
    TILE,
    multiply_blocks,
    pack_tile,
    products_at,
    rows_at_once,
    scratch,
    tiles_of,
)
from kernels.simd import load_i32x16, tiles_begin, tiles_end
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
    """Scratch for a group of that many rows; nothing if it is not of many."""
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
    """Offset of a row's 16 integers with the first block; STEP further, with the second."""
    return products + row // TILE * (2 * planes * STEP) + row % TILE * (TILE * 4)


@inline
def gate_up_pass(x, w, base, block, last, rows, first, scale, out, width):
    """Pairs first.. whose rows are packed in x, against blocks block..last of one expert."""
    tiles = tiles_of(len(rows), 1)
    tiles_begin()
    while block < last:
        gate_at, gate_kind = block_at(w, base, 2 * block)
        up_at, up_kind = block_at(w, base, 2 * block + 1)
        gate_next, _ = block_at(w, base, 2 * min(block + 1, last - 1))
        up_next, _ = block_at(w, base, 2 * min(block + 1, last - 1) + 1)
        multiply_blocks(x, tiles, width, w, gate_kind, up_kind, gate_at, up_at, gate_next, up_next)
        gate_scales = row_scales(w, gate_kind, gate_at, width)
        up_scales = row_scales(w, up_kind, up_at, width)
        for i in range(len(rows)):
            at = product_at(products_at(tiles, width), i, 1)
            gate, up = load_i32x16(x, at), load_i32x16(x, at + STEP)
            put(out, first + i, block, swiglu_int(gate, up, scale[rows[i]], gate_scales, up_scales))
        block += 1
    tiles_end()


@inline
def gate_up_many(w, base, group_start, row_of, q, sums, scale, width_blocks, out, begin, end):
    """The items of gate_up_int (kernels/experts.py) whose groups have many rows."""
    width = q.shape[1]
    last_group = (end + width_blocks - 1) // width_blocks
    x = scratch_for(most_rows(group_start, begin // width_blocks, last_group), 1, width)
    item = begin
    while item < end:
        group = item // width_blocks
        block = item % width_blocks
        last = min(width_blocks, block + end - item)
        start, stop = group_start[group], group_start[group + 1]
        if stop - start >= MANY:
            size = rows_at_once(stop - start, 1, width)
            for first in range(start, stop, size):
                rows = row_of[first : min(stop, first + size)]
                pack_rows(x, q, sums, rows)
                gate_up_pass(x, w, base[group], block, last, rows, first, scale, out, width)
        item += last - block


@inline
def down_pass(x, w, matrix, block, last, rows, scale, order, out, width):
    """Rows whose two planes are packed in x, against blocks block..last of one expert's down matrix."""
    tiles = tiles_of(len(rows), 2)
    tiles_begin()
    while block < last:
        kind, at0, at1, other = pair_at(w, matrix, block, last)
        _, next0, next1, _ = pair_at(w, matrix, min(other + 1, last - 1), last)
        multiply_blocks(x, tiles, width, w, kind, kind, at0, at1, next0, next1)
        s0, s1 = row_scales(w, kind, at0, width), row_scales(w, kind, at1, width)
        for i in range(len(rows)):
            at = product_at(products_at(tiles, width), i, 2)
            hi0, hi1 = load_i32x16(x, at), load_i32x16(x, at + STEP)
            lo0, lo1 = load_i32x16(x, at + 2 * STEP), load_i32x16(x, at + 3 * STEP)
            put_pair_planes(out, order[rows[i]], block, other, hi0, hi1, lo0, lo1, scale[rows[i]], s0, s1)
        block = other + 1
    tiles_end()


@inline
def down_many(w, base, down_offset, group_start, hi, lo, sums_hi, sums_lo, scale, out, order, begin, end):
    """The items of down_int (kernels/experts.py) whose groups have many rows."""
    width = hi.shape[1]
    blocks = out.shape[1] // ROWS
    x = scratch_for(most_rows(group_start, begin // blocks, (end + blocks - 1) // blocks), 2, width)
    item = begin
    while item < end:
        group = item // blocks
        block = item % blocks
        last = min(blocks, block + end - item)
        start, stop = group_start[group], group_start[group + 1]
        if stop - start >= MANY:
            size = rows_at_once(stop - start, 2, width)
            for first in range(start, stop, size):
                rows = np.arange(first, min(stop, first + size))
                pack_planes(x, hi, lo, sums_hi, sums_lo, rows)
                down_pass(x, w, base[group] + down_offset, block, last, rows, scale, order, out, width)
        item += last - block
