"""Attention of each token over its sequence's KV pages: grouped queries, causal, optionally windowed.

The bits depend on the token's position and the stored keys and values alone. Per head:

    s_j = scale · (q · k_j)                 one FMA chain over the head's width, lanes = tokens
    m   = max over visible j of s_j         exact, before any exp
    for each 64-token block b, aligned to absolute position, in ascending order:
        p_j = exp(s_j - m)
        l  += sum of p_j                    32 lanes by position, fixed tree
        o  += sum of p_j v_j                one FMA chain over the block's tokens, lanes = width
    out = o / l

Slots that are not visible (later tokens, tokens before the window, stale pages) are skipped, never
multiplied by zero: a stale page may hold NaN.
"""

from __future__ import annotations

import numpy as np

from kernels.jit import (
    F32,
    F32_2,
    F32_3R,
    F32_4R,
    F32_5R,
    I32_2R,
    I64_1R,
    INT,
    U16_4R,
    U16_5R,
    VOID,
    inline,
    kernel,
)
from kernels.maths import exp_f32x16
from kernels.simd import (
    fma,
    load_f32,
    load_f32x16,
    max_f32,
    reduce_add_f32,
    reduce_max_f32,
    splat_f32,
    store_f32x16,
)
from kernels.simd.elements import load_elements, select_first

BLOCK = 64
"""Tokens whose softmax sums are formed together; aligned to absolute position, whatever the page size."""

_TILE = 16
_ZERO = np.float32(0.0)
_LOWEST = np.float32(-np.inf)


@inline
def _key_tile(k_pages, page_table, row, head, token):  # type: ignore[no-untyped-def]
    """First element of the [Dp, 16] tile that holds `token`."""
    _, kv_heads, tiles, padded, _ = k_pages.shape
    tile = token // _TILE
    page = np.int64(page_table[row, tile // tiles])
    return ((page * kv_heads + head) * tiles + tile % tiles) * padded * _TILE


@inline
def _value_row(v_pages, page_table, row, head, token):  # type: ignore[no-untyped-def]
    _, kv_heads, size, padded = v_pages.shape
    page = np.int64(page_table[row, token // size])
    return ((page * kv_heads + head) * size + token % size) * padded


@inline
def _score_block(q, q_byte, k_pages, a, b, c, d, scale, scores, place):  # type: ignore[no-untyped-def]
    """scores[place …] = scale · (q · k) of four tiles starting at elements a, b, c, d."""
    s0, s1, s2, s3 = splat_f32(_ZERO), splat_f32(_ZERO), splat_f32(_ZERO), splat_f32(_ZERO)
    for i in range(k_pages.shape[3]):
        x = splat_f32(load_f32(q, q_byte + i * 4))
        s0 = fma(x, load_elements(k_pages, a + i * _TILE), s0)
        s1 = fma(x, load_elements(k_pages, b + i * _TILE), s1)
        s2 = fma(x, load_elements(k_pages, c + i * _TILE), s2)
        s3 = fma(x, load_elements(k_pages, d + i * _TILE), s3)
    factor = splat_f32(scale)
    store_f32x16(scores, place, s0 * factor)
    store_f32x16(scores, place + 64, s1 * factor)
    store_f32x16(scores, place + 128, s2 * factor)
    store_f32x16(scores, place + 192, s3 * factor)


@inline
def _score(q, q_byte, group, k_pages, page_table, row, head, start, stop, scale, scores):  # type: ignore[no-untyped-def]
    """Scores of tokens start <= j < stop for `group` query heads; column j - start aligned down to BLOCK."""
    origin = start // BLOCK * BLOCK
    padded, line = k_pages.shape[3], scores.shape[1] * 4
    for block in range(origin, stop, BLOCK):
        # A tile outside [start, stop) may have no page: the nearest one that has stands in and is masked.
        a = _key_tile(k_pages, page_table, row, head, min(max(block, start), stop - 1))
        b = _key_tile(k_pages, page_table, row, head, min(max(block + 16, start), stop - 1))
        c = _key_tile(k_pages, page_table, row, head, min(max(block + 32, start), stop - 1))
        d = _key_tile(k_pages, page_table, row, head, min(max(block + 48, start), stop - 1))
        for g in range(group):
            place = g * line + (block - origin) * 4
            _score_block(q, q_byte + g * padded * 4, k_pages, a, b, c, d, scale, scores, place)


@inline
def _normalise(scores, g, before, visible, columns):  # type: ignore[no-untyped-def]
    """Turn a row of scores into p = exp(s - max), zero where masked, in place.

    Columns before <= j < visible are seen, out of `columns` (a multiple of BLOCK).
    """
    line = g * scores.shape[1] * 4
    for j in range(before):
        scores[g, j] = _LOWEST
    lowest, zero = splat_f32(_LOWEST), splat_f32(_ZERO)
    best = lowest
    for j in range(0, visible, 16):
        best = max_f32(select_first(visible - j, load_f32x16(scores, line + j * 4), lowest), best)
    top = splat_f32(reduce_max_f32(best))
    for j in range(0, columns, 16):
        p = exp_f32x16(load_f32x16(scores, line + j * 4) - top)
        store_f32x16(scores, line + j * 4, select_first(visible - j, p, zero))
    for j in range(before):
        scores[g, j] = _ZERO


@inline
def _sum_block(scores, byte):  # type: ignore[no-untyped-def]
    low = load_f32x16(scores, byte) + load_f32x16(scores, byte + 128)
    high = load_f32x16(scores, byte + 64) + load_f32x16(scores, byte + 192)
    return reduce_add_f32(low + high)


@inline
def _weigh_four(scores, line, v_pages, page_table, row, head, origin, start, stop, column, out, place):  # type: ignore[no-untyped-def]
    """o += sum of p_j v_j over start <= j < stop, columns column … column + 63 of the head."""
    width = v_pages.shape[3]
    o0, o1, o2, o3 = splat_f32(_ZERO), splat_f32(_ZERO), splat_f32(_ZERO), splat_f32(_ZERO)
    token = start
    while token < stop:
        tile_end = min((token // _TILE + 1) * _TILE, stop)  # a tile never crosses a page
        v = _value_row(v_pages, page_table, row, head, token) + column
        for j in range(token, tile_end):
            p = splat_f32(load_f32(scores, line + (j - origin) * 4))
            o0 = fma(p, load_elements(v_pages, v), o0)
            o1 = fma(p, load_elements(v_pages, v + 16), o1)
            o2 = fma(p, load_elements(v_pages, v + 32), o2)
            o3 = fma(p, load_elements(v_pages, v + 48), o3)
            v += width
        token = tile_end
    store_f32x16(out, place, load_f32x16(out, place) + o0)
    store_f32x16(out, place + 64, load_f32x16(out, place + 64) + o1)
    store_f32x16(out, place + 128, load_f32x16(out, place + 128) + o2)
    store_f32x16(out, place + 192, load_f32x16(out, place + 192) + o3)


@inline
def _weigh_one(scores, line, v_pages, page_table, row, head, origin, start, stop, column, out, place):  # type: ignore[no-untyped-def]
    """The same for columns column … column + 15."""
    width = v_pages.shape[3]
    total = splat_f32(_ZERO)
    token = start
    while token < stop:
        tile_end = min((token // _TILE + 1) * _TILE, stop)
        v = _value_row(v_pages, page_table, row, head, token) + column
        for j in range(token, tile_end):
            total = fma(
                splat_f32(load_f32(scores, line + (j - origin) * 4)), load_elements(v_pages, v), total
            )
            v += width
        token = tile_end
    store_f32x16(out, place, load_f32x16(out, place) + total)


@inline
def _weigh(scores, group, v_pages, page_table, row, head, start, stop, out, place):  # type: ignore[no-untyped-def]
    """out = sum of p_j v_j / sum of p_j of `group` heads, block by block; `place`: the first head's byte."""
    origin = start // BLOCK * BLOCK
    padded, line = v_pages.shape[3], scores.shape[1] * 4
    for i in range(0, group * padded * 4, 64):
        store_f32x16(out, place + i, splat_f32(_ZERO))
    for block in range(origin, stop, BLOCK):
        first, last = max(block, start), min(block + BLOCK, stop)
        for g in range(group):
            at, column = place + g * padded * 4, 0
            p = g * line
            while column + 64 <= padded:
                _weigh_four(
                    scores,
                    p,
                    v_pages,
                    page_table,
                    row,
                    head,
                    origin,
                    first,
                    last,
                    column,
                    out,
                    at + column * 4,
                )
                column += 64
            while column < padded:
                _weigh_one(
                    scores,
                    p,
                    v_pages,
                    page_table,
                    row,
                    head,
                    origin,
                    first,
                    last,
                    column,
                    out,
                    at + column * 4,
                )
                column += 16
    for g in range(group):
        total = _ZERO
        for block in range(origin, stop, BLOCK):
            total += _sum_block(scores, g * line + (block - origin) * 4)
        divisor = splat_f32(total)
        at = place + g * padded * 4
        for i in range(0, padded * 4, 64):
            store_f32x16(out, at + i, load_f32x16(out, at + i) / divisor)


def _signature(k_pages: object, v_pages: object) -> object:
    return VOID(F32_3R, k_pages, v_pages, I32_2R, I64_1R, I64_1R, INT, F32, F32_2, F32_2, INT, INT)


@kernel(_signature(U16_5R, U16_4R), _signature(F32_5R, F32_4R))
def attend(  # type: ignore[no-untyped-def]
    q, k_pages, v_pages, page_table, sequence, positions, window, scale, out, scores, begin, end
):
    """Attention outputs of items begin <= item < end, an item being kv head item // T of token item % T.

    q: [T, heads, Dp] float32, rotated. k_pages: [pages, kv_heads, page_size / 16, Dp, 16], v_pages:
    [pages, kv_heads, page_size, Dp], float32 or bf16 bits; query head h reads kv head h // (heads/kv_heads).
    page_table: [sequences, pages of a sequence] int32; sequence[t] is token t's row in it, positions[t] its
    position. Token t sees positions max(0, p - window + 1) … p, all from 0 with window 0; their keys and
    values, its own included, are already in the pages. out: [T, ldo >= heads·Dp] float32, head h from column
    h·Dp on, columns past the last head zero. scores: this thread's scratch,
    [heads / kv_heads, >= longest context rounded up to a multiple of BLOCK] float32.
    """
    tokens, heads, padded = q.shape
    kv_heads = v_pages.shape[1]
    group = heads // kv_heads
    for item in range(begin, end):
        head, t = item // tokens, item % tokens
        row, stop = sequence[t], positions[t] + 1
        start = max(stop - window, 0) if window > 0 else 0
        origin = start // BLOCK * BLOCK
        columns = (stop - origin + BLOCK - 1) // BLOCK * BLOCK
        q_byte = (t * heads + head * group) * padded * 4
        _score(q, q_byte, group, k_pages, page_table, row, head, start, stop, scale, scores)
        for g in range(group):
            _normalise(scores, g, start - origin, stop - origin, columns)
        _weigh(
            scores,
            group,
            v_pages,
            page_table,
            row,
            head,
            start,
            stop,
            out,
            (t * out.shape[1] + head * group * padded) * 4,
        )
        if head == kv_heads - 1:
            for i in range(heads * padded, out.shape[1]):
                out[t, i] = _ZERO
