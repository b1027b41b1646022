# mypy: disable-error-code="no-untyped-def,no-untyped-call"
"""Trunk matrices: y = x Wᵀ over blocks of 16 output rows (kernels/layout.py), and rows of the embedding.

`w` is any byte array that holds the packed matrix at byte `base`; `begin..end` are blocks (or rows, where
said), so that threads can split the work: no result depends on the split or on the other rows.
"""

from __future__ import annotations

import numpy as np

from kernels.blocks import block_at, multipliers_at, run_at, scales_at
from kernels.dots import STREAMS, tile_1, tile_2, tile_4
from kernels.jit import BYTES, F32_1R, F32_2, F32_2R, I8_2R, I32_1R, I32_2R, INT, VOID, inline, kernel, splice
from kernels.layout import BF16, F32, GROUP, INT8, ROWS
from kernels.prefill import MANY, matmul_many
from kernels.simd import load_bf16, load_f32, load_f32x16, store_f32x16
from kernels.tiles import chain_1, chain_4, put, put_planes, put_sums


def matmul_of(blocks):
    """run(...): every row with the `blocks` blocks from byte `at` on: outputs from `block` on."""
    tile1, tile2, tile4 = tile_1(blocks), tile_2(blocks), tile_4(blocks)

    @splice
    def run(w, kind, at, step, follow, hi, lo, sums_hi, sums_lo, scale, planes, out, block):
        scales = scales_at(kind, at, hi.shape[1])
        rows, row = hi.shape[0], 0
        while row + 4 // planes <= rows:
            r1, r2, r3 = row + 1 // planes, row + 2 // planes, row + 3 // planes
            a, b, c, d = tile4(w, kind, at, step, follow, hi, lo, sums_hi, sums_lo, row, r1, r2, r3)
            if planes == 1:
                put_sums(out, row, block, blocks, w, scales, step, a, scale[row])
                put_sums(out, r1, block, blocks, w, scales, step, b, scale[r1])
                put_sums(out, r2, block, blocks, w, scales, step, c, scale[r2])
                put_sums(out, r3, block, blocks, w, scales, step, d, scale[r3])
            else:
                put_planes(out, row, block, blocks, w, scales, step, a, b, scale[row])
                put_planes(out, r2, block, blocks, w, scales, step, c, d, scale[r2])
            row += 4 // planes
        while row + 2 // planes <= rows:
            r1 = row + 1 // planes
            a, b = tile2(w, kind, at, step, follow, hi, lo, sums_hi, sums_lo, row, r1)
            if planes == 1:
                put_sums(out, row, block, blocks, w, scales, step, a, scale[row])
                put_sums(out, r1, block, blocks, w, scales, step, b, scale[r1])
            else:
                put_planes(out, row, block, blocks, w, scales, step, a, b, scale[row])
            row += 2 // planes
        if row < rows:
            a = tile1(w, kind, at, step, follow, hi, sums_hi, row)
            put_sums(out, row, block, blocks, w, scales, step, a, scale[row])

    return run


matmul_tile, matmul_block = matmul_of(STREAMS), matmul_of(1)


@kernel(VOID(BYTES, INT, I8_2R, I8_2R, I32_2R, I32_2R, F32_1R, INT, F32_2, INT, INT))
def matmul_int(w, base, hi, lo, sums_hi, sums_lo, scale, planes, out, begin, end):
    """out[:, 16 b : 16 b + 16] = the product of every row with each int8 or int4 block b in begin..end.

    hi, lo [T, K] int8; sums_* [T, K/64] int32; scale [T]; out [T, >= 16 * blocks] float32.
    planes = 1: y = f32(I) * (s_a * s_row); lo and sums_lo are not part of it: pass hi and sums_hi again.
    planes = 2: y = fma(128, f32(I_hi), f32(I_lo)) * (s_a * s_row).
    """
    if len(hi) >= MANY and begin < end:
        matmul_many(w, base, hi, lo, sums_hi, sums_lo, scale, planes, out, begin, end)
        return
    block = begin
    while block < end:
        kind, at, step = run_at(w, base, block, end - block, STREAMS)
        if step:
            follow = at + STREAMS * step
            matmul_tile(w, kind, at, step, follow, hi, lo, sums_hi, sums_lo, scale, planes, out, block)
            block += STREAMS
        else:
            matmul_block(w, kind, at, 0, at, hi, lo, sums_hi, sums_lo, scale, planes, out, block)
            block += 1


@kernel(VOID(BYTES, INT, F32_2R, F32_2, INT, INT))
def matmul_float(w, base, x, out, begin, end):
    """The same for bf16 and f32 blocks: y = one sequential chain of fused multiply-adds over ascending k.

    x [T, K] float32, out [T, >= 16 * blocks] float32.
    """
    rows = x.shape[0]
    for block in range(begin, end):
        at, kind = block_at(w, base, block)
        row = 0
        while row + 4 <= rows:
            y0, y1, y2, y3 = chain_4(w, kind, at, x, row, row + 1, row + 2, row + 3)
            put(out, row, block, y0)
            put(out, row + 1, block, y1)
            put(out, row + 2, block, y2)
            put(out, row + 3, block, y3)
            row += 4
        while row < rows:
            put(out, row, block, chain_1(w, kind, at, x, row))
            row += 1


@inline
def element(w, kind, at, width, lane, k):
    """Weight (output row `lane`, input k) of a block as float32; the integer part of int4 is exact."""
    if kind == F32:
        return load_f32(w, at + (k * ROWS + lane) * 4)
    if kind == BF16:
        return load_bf16(w, at + (k * ROWS + lane) * 2)
    scale = load_f32(w, scales_at(kind, at, width) + lane * 4)
    if kind == INT8:
        level = np.int64(w[at + k // 4 * 64 + lane * 4 + k % 4]) - 128
    else:
        pair = np.int64(w[at + k // 8 * 64 + lane * 4 + k % 4])
        nibble = pair >> 4 if k % 8 >= 4 else pair & 15
        level = (nibble - 8) * np.int64(w[multipliers_at(at, width) + k // GROUP * ROWS + lane])
    return scale * np.float32(level)


@kernel(VOID(BYTES, INT, INT, I32_1R, F32_2))
def embed_rows(w, base, width, ids, out):
    """out[t] = row ids[t] of a matrix of any kind over `width` inputs, dequantised.

    ids [T] int32, each within the matrix; out [T, width] float32; int8: s * (u - 128), int4: s * (m (u - 8)).
    """
    for t in range(ids.shape[0]):
        at, kind = block_at(w, base, np.int64(ids[t]) // ROWS)
        lane = np.int64(ids[t]) % ROWS
        for k in range(width):
            out[t, k] = element(w, kind, at, width, lane, k)


@kernel(VOID(F32_2, F32_2R, INT, INT))
def add_rows(x, y, begin, end):
    """x += y on rows begin..end; both [T, N] float32, N a multiple of 16. Joins an output to the residual."""
    width = x.shape[1]
    for at in range(begin * width * 4, end * width * 4, 64):
        store_f32x16(x, at, load_f32x16(x, at) + load_f32x16(y, at))
