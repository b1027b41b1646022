# mypy: disable-error-code="no-untyped-def,no-untyped-call"
"""Attention of each token over its sequence's KV pages: grouped queries, causal, optionally windowed.

The bits depend on the token's position and the stored keys and values alone. Per head:

    s_j = scale · (q · k_j)                 one FMA chain over the head's width, lanes = tokens
    m   = max over visible j of s_j         exact, before any exp
    for each 64-token block b, aligned to absolute position, in ascending order:
        p_j = exp(s_j - m)
        l  += sum of p_j                    32 lanes by position, fixed tree
        o  += sum of p_j v_j                one FMA chain over the block's tokens, lanes = width
    out = o / l

int8 pages have a scale for every token and head: s_j = scale · (c_j · (q · k_j)), and v_j is weighed by
p_j d_j, with the scales c of keys and d of values.

Slots that are not visible (later tokens, tokens before the window, stale pages) are skipped, never
multiplied by zero: a stale page may hold NaN.

A *row* below is one query head of one token. Rows that read the same kv head of the same sequence (the
heads of a group, consecutive tokens of a prefill) are computed together, so that a tile of keys or values is
loaded once for eight of them; no row's arithmetic depends on which others share its loads.
"""

from __future__ import annotations

import numpy as np

from kernels.attention_tiles import ROWS, places, score_1, score_8, weigh_1x1, weigh_1x4, weigh_8x2
from kernels.jit import (
    F32,
    F32_2,
    F32_3R,
    F32_4R,
    F32_5R,
    I32_2R,
    I64_1R,
    INT,
    NONE,
    U16_4R,
    U16_5R,
    VOID,
    inline,
    kernel,
)
from kernels.kv import I8_4R, I8_5R, key_tiles, value_tiles, weigh_by_scales
from kernels.maths import exp_f32x16
from kernels.simd import load_f32x16, max_f32, reduce_add_f32, reduce_max_f32, splat_f32, store_f32x16
from kernels.simd.elements import select_first

BLOCK = 64
"""Tokens whose softmax sums are formed together; aligned to absolute position, whatever the page size."""

_ZERO = np.float32(0.0)
_LOWEST = np.float32(-np.inf)


@inline
def start_of(stop, window):
    """First position that a token sees whose last one is stop - 1."""
    return max(stop - window, 0) if window > 0 else 0


@inline
def score(q, q_at, strips, strip_step, rows, row_step, k_pages, k_scales, place, start, stop, scale, scores):
    """Scores of tokens start <= j < stop for every row; column j - start aligned down to BLOCK."""
    origin = start // BLOCK * BLOCK
    line = scores.shape[1] * 4
    for block in range(origin, stop, BLOCK):
        tiles, column = key_tiles(k_pages, place, block, start, stop), (block - origin) * 4
        for strip in range(strips):
            row = 0
            while row < rows:
                q_row, s_row = q_at + strip * strip_step + row * row_step, (strip * rows + row) * line
                if rows - row == 1:
                    score_1(q, q_row, k_pages, k_scales, tiles, scale, scores, s_row + column)
                else:
                    q_rows = places(q_row, row_step, rows - row)
                    s_rows = places(s_row, line, rows - row)
                    for half in range(2):
                        a, b = (tiles[2], tiles[3]) if half else (tiles[0], tiles[1])
                        at = column + 128 * half
                        score_8(q, q_rows, k_pages, k_scales, a, b, scale, scores, s_rows, at)
                row += ROWS


@inline
def normalise(scores, row, before, visible, columns):
    """Turn a row of scores into p = exp(s - max), zero where masked, in place.

    Columns before <= j < visible are seen, out of `columns` (a multiple of BLOCK).
    """
    line = row * scores.shape[1] * 4
    for j in range(before):
        scores[row, j] = _LOWEST
    lowest, zero = splat_f32(_LOWEST), splat_f32(_ZERO)
    best = lowest
    for j in range(0, visible, 16):
        best = max_f32(select_first(visible - j, load_f32x16(scores, line + j * 4), lowest), best)
    top = splat_f32(reduce_max_f32(best))
    for j in range(0, columns, 16):
        p = exp_f32x16(load_f32x16(scores, line + j * 4) - top)
        store_f32x16(scores, line + j * 4, select_first(visible - j, p, zero))
    for j in range(before):
        scores[row, j] = _ZERO


@inline
def sum_block(scores, byte):
    low = load_f32x16(scores, byte) + load_f32x16(scores, byte + 128)
    high = load_f32x16(scores, byte + 64) + load_f32x16(scores, byte + 192)
    return reduce_add_f32(low + high)


@inline
def sum_row(scores, row, columns):
    """The sum of p, block by block."""
    total = _ZERO
    for column in range(0, columns, BLOCK):
        total += sum_block(scores, (row * scores.shape[1] + column) * 4)
    return total


@inline
def weigh_row(scores, byte, v_pages, tiles, first, last, out, at):
    """out += sum of p_j v_j of one row over first <= j < last, tokens of one block. byte: of p_first."""
    padded, column = v_pages.shape[3], 0
    while column + 64 <= padded:
        weigh_1x4(scores, byte, v_pages, tiles, first, last, column, out, at + column)
        column += 64
    while column < padded:
        weigh_1x1(scores, byte, v_pages, tiles, first, last, column, out, at + column)
        column += 16


@inline
def weigh_rows(scores, byte, rows, grow, v_pages, tiles, block, origin, stop, window, out, at, step):
    """The same for up to eight rows, over what each sees of the block: the first one's last token is
    stop - 1, each further one sees `grow` more. byte: of the first one's p at `origin`."""
    padded, line = v_pages.shape[3], scores.shape[1] * 4
    last_stop = stop + (rows - 1) * grow
    first = max(block, start_of(stop, window))
    last = min(block + BLOCK, last_stop)
    plain = max(min(last, stop), first) if start_of(last_stop, window) <= first else first
    column = 0
    while column + 32 <= padded:
        s_rows, o_rows = places(byte, line, rows), places(at + column, step, rows)
        span = (first, plain, last)
        weigh_8x2(scores, s_rows, origin * 4, v_pages, tiles, span, column, out, o_rows)
        column += 32
    if column < padded:
        for row in range(rows):
            begin = max(block, start_of(stop + row * grow, window))
            end = min(block + BLOCK, stop + row * grow)
            p = byte + row * line + (begin - origin) * 4
            weigh_1x1(scores, p, v_pages, tiles, begin, end, column, out, at + row * step + column)


@inline
def weigh(scores, strips, strip_step, rows, row_step, grows, v_pages, place, stop, window, out, at):
    """out = sum of p_j v_j, block by block. at: element of the first row."""
    start, last_stop = start_of(stop, window), stop + (strips - 1) * grows[0] + (rows - 1) * grows[1]
    origin = start // BLOCK * BLOCK
    line = scores.shape[1] * 4
    for block in range(origin, last_stop, BLOCK):
        tiles = value_tiles(v_pages, place, block, start, last_stop)
        for strip in range(strips):
            row = 0
            while row < rows:
                byte, o_at = (strip * rows + row) * line, at + strip * strip_step + row * row_step
                row_stop = stop + strip * grows[0] + row * grows[1]
                if rows - row == 1:
                    first, last = max(block, start_of(row_stop, window)), min(block + BLOCK, row_stop)
                    weigh_row(scores, byte + (first - origin) * 4, v_pages, tiles, first, last, out, o_at)
                else:
                    few = min(rows - row, ROWS)
                    weigh_rows(
                        *(scores, byte, few, grows[1], v_pages, tiles, block, origin, row_stop, window),
                        *(out, o_at, row_step),
                    )
                row += ROWS


@inline
def attend_tokens(
    q, k_pages, v_pages, k_scales, v_scales, place, t, count, stop, window, scale, out, scores, sums
):
    """Outputs of `count` consecutive tokens from t on, heads of one kv head; token t sees up to stop - 1.

    Rows are taken in strips at a constant step: the tokens of one head, or the heads of one token where a
    token has more of them.
    """
    _, heads, padded = q.shape
    group, head = heads // v_pages.shape[1], place[2]
    by_token = group >= count
    strips, rows = (count, group) if by_token else (group, count)
    grows = (1, 0) if by_token else (0, 1)
    q_strip, q_row = (heads * padded, padded) if by_token else (padded, heads * padded)
    o_strip, o_row = (out.shape[1], padded) if by_token else (padded, out.shape[1])
    q_at = (t * heads + head * group) * padded
    o_at = t * out.shape[1] + head * group * padded
    start, last_stop = start_of(stop, window), stop + count - 1
    origin = start // BLOCK * BLOCK
    columns = (last_stop - origin + BLOCK - 1) // BLOCK * BLOCK
    score(q, q_at, strips, q_strip, rows, q_row, k_pages, k_scales, place, start, last_stop, scale, scores)
    for row in range(strips * rows):
        row_stop = stop + row // rows * grows[0] + row % rows * grows[1]
        normalise(scores, row, start_of(row_stop, window) - origin, row_stop - origin, columns)
        sums[row] = sum_row(scores, row, columns)
        byte = row * scores.shape[1] * 4
        weigh_by_scales(scores, byte, v_scales, v_pages, place, origin, start, last_stop)
        at = (o_at + row // rows * o_strip + row % rows * o_row) * 4
        for i in range(0, padded * 4, 64):
            store_f32x16(out, at + i, splat_f32(_ZERO))
    weigh(scores, strips, o_strip, rows, o_row, grows, v_pages, place, stop, window, out, o_at)
    for row in range(strips * rows):
        divisor = splat_f32(sums[row])
        at = (o_at + row // rows * o_strip + row % rows * o_row) * 4
        for i in range(0, padded * 4, 64):
            store_f32x16(out, at + i, load_f32x16(out, at + i) / divisor)


@inline
def run_length(sequence, positions, t, most):
    """Tokens from t on, at most `most`, that follow one another in one sequence."""
    count = 1
    while (
        count < most and sequence[t + count] == sequence[t] and positions[t + count] == positions[t] + count
    ):
        count += 1
    return count


def _signature(*pages):
    """pages: the types of keys, values and their scales."""
    return VOID(F32_3R, *pages, I32_2R, I64_1R, I64_1R, INT, F32, F32_2, F32_2, INT, INT)


@kernel(
    _signature(U16_5R, U16_4R, NONE, NONE),
    _signature(F32_5R, F32_4R, NONE, NONE),
    _signature(I8_5R, I8_4R, F32_3R, F32_3R),
)
def attend(
    q,
    k_pages,
    v_pages,
    k_scales,
    v_scales,
    page_table,
    sequence,
    positions,
    window,
    scale,
    out,
    scores,
    begin,
    end,
):
    """Attention outputs of items begin <= item < end, an item being kv head item // T of token item % T.

    q: [T, heads, Dp] float32, rotated. k_pages: [pages, kv_heads, page_size / 16, Dp, 16], v_pages:
    [pages, kv_heads, page_size, Dp], float32, bf16 bits, or int8 with k_scales, v_scales: [pages, kv_heads,
    page_size] float32, else None. Query head h reads kv head h // (heads/kv_heads).
    page_table: [sequences, pages of a sequence] int32; sequence[t] is token t's row in it, positions[t] its
    position. Token t sees positions max(0, p - window + 1) … p, all from 0 with window 0; their keys and
    values, its own included, are already in the pages. out: [T, ldo >= heads·Dp] float32, head h from column
    h·Dp on, columns past the last head zero. scores: this thread's scratch,
    [rows >= heads / kv_heads, >= longest context rounded up to a multiple of BLOCK] float32: as many rows as
    it has, whole tokens, are computed together.
    """
    tokens, heads, padded = q.shape
    kv_heads = v_pages.shape[1]
    together = max(scores.shape[0] // (heads // kv_heads), 1)
    sums = np.empty(scores.shape[0], np.float32)
    item = begin
    while item < end:
        head, t = item // tokens, item % tokens
        count = run_length(sequence, positions, t, min(together, min(end - item, tokens - t)))
        place, stop = (page_table, sequence[t], head), positions[t] + 1
        attend_tokens(
            *(q, k_pages, v_pages, k_scales, v_scales, place, t, count, stop, window, scale),
            *(out, scores, sums),
        )
        if head == kv_heads - 1:
            for row in range(t, t + count):
                for i in range(heads * padded, out.shape[1]):
                    out[row, i] = _ZERO
        item += count
