"""From the q·k·v projection to rotated queries and stored keys and values: bias, norm, clip, RoPE."""

from __future__ import annotations

import numpy as np

from kernels.jit import (
    F32,
    F32_1R,
    F32_2,
    F32_2R,
    F32_3,
    F32_4,
    F32_5,
    I64_1R,
    INT,
    NONE,
    U8_1,
    U16_4,
    U16_5,
    VOID,
    inline,
    kernel,
)
from kernels.kv import I8_4, I8_5, TILE, store_key, store_value
from kernels.norm import dot32, inverse_rms
from kernels.simd import (
    fma,
    load_f32,
    load_f32x16,
    max_f32,
    min_f32,
    reduce_add_f32,
    splat_f32,
    store_f32x16,
)
from kernels.simd.elements import store_f32

QK_NONE, QK_HEAD, QK_FULL = 0, 1, 2
"""RMSNorm of q and k: none, over each head, over the whole projection."""

_ZERO = np.float32(0.0)
_LANES = 16


@inline
def _add_row(qkv, byte, bias):  # type: ignore[no-untyped-def]
    for i in range(0, bias.size * 4, 64):
        store_f32x16(qkv, byte + i, load_f32x16(qkv, byte + i) + load_f32x16(bias, i))


@inline
def _clip_row(qkv, byte, width, limit):  # type: ignore[no-untyped-def]
    low, high = splat_f32(-limit), splat_f32(limit)
    for i in range(0, width * 4, 64):
        store_f32x16(qkv, byte + i, min_f32(max_f32(load_f32x16(qkv, byte + i), low), high))


@inline
def _norm_span(qkv, byte, width, mean_over, weight, eps):  # type: ignore[no-untyped-def]
    """RMSNorm in place of `width` padded elements, of which `mean_over` are real; weight from its start.

    Returns whether the sum of squares is finite: 1 / sqrt(Inf) is 0 and would hide the overflow.
    """
    total = dot32(qkv, byte, qkv, byte, width)
    scale = splat_f32(inverse_rms(total, mean_over, eps))
    for i in range(0, width * 4, 64):
        store_f32x16(qkv, byte + i, load_f32x16(qkv, byte + i) * scale * load_f32x16(weight, i))
    return np.isfinite(total)


@inline
def _norm_heads(qkv, byte, heads, padded, width, weight, mode, eps):  # type: ignore[no-untyped-def]
    """Norm of one token's q or k; a full projection is one span over all heads. Returns whether finite."""
    if mode == QK_NONE:
        return True
    spans = heads if mode == QK_HEAD else 1
    each = heads // spans
    good = True
    for span in range(spans):
        at = byte + span * padded * 4
        good = _norm_span(qkv, at, each * padded, each * width, weight, eps) and good
    return good


@inline
def _rotate(x, byte, half, cos, sin, turn, out, place):  # type: ignore[no-untyped-def]
    """Rotate the two halves of the head at `byte` of x into `out` from byte `place` on.

    turn: byte of the position's angles. x and out do not overlap: the last vector of a half may repeat
    lanes of the one before it.
    """
    if half < _LANES:
        for i in range(0, half * 4, 4):
            a, b = load_f32(x, byte + i), load_f32(x, byte + half * 4 + i)
            c, s = load_f32(cos, turn + i), load_f32(sin, turn + i)
            store_f32(out, place + i, a * c - b * s)
            store_f32(out, place + half * 4 + i, b * c + a * s)
    else:
        for k in range(0, half, _LANES):
            i = min(k, half - _LANES) * 4
            a, b = load_f32x16(x, byte + i), load_f32x16(x, byte + half * 4 + i)
            c, s = load_f32x16(cos, turn + i), load_f32x16(sin, turn + i)
            store_f32x16(out, place + i, a * c - b * s)
            store_f32x16(out, place + half * 4 + i, b * c + a * s)


@inline
def _rotate_token(qkv, t, half, cos, sin, position, q_out, kv_heads):  # type: ignore[no-untyped-def]
    """Queries to q_out; keys to where the queries were: both with zeros in the padding of every head."""
    _, heads, padded = q_out.shape
    row, turn = t * qkv.shape[1] * 4, position * half * 4
    for head in range(heads):
        _rotate(qkv, row + head * padded * 4, half, cos, sin, turn, q_out, (t * heads + head) * padded * 4)
        for i in range(2 * half, padded):
            q_out[t, head, i] = _ZERO
    for head in range(kv_heads):
        at = row + head * padded * 4
        _rotate(qkv, at + heads * padded * 4, half, cos, sin, turn, qkv, at)
        for i in range(2 * half, padded):
            qkv[t, head * padded + i] = _ZERO


@inline
def _is_finite(qkv, t):  # type: ignore[no-untyped-def]
    zero = splat_f32(_ZERO)
    total = zero
    row = t * qkv.shape[1] * 4
    for i in range(0, qkv.shape[1] * 4, 64):
        total = fma(load_f32x16(qkv, row + i), zero, total)  # NaN or Inf times zero is NaN, and stays
    return reduce_add_f32(total) == _ZERO


_TABLES = (F32_2R, F32_2R, I64_1R, I64_1R)


def _signature(*pages: object) -> object:
    """pages: the types of keys, values and their scales."""
    return VOID(F32_2, F32_1R, F32_1R, F32_1R, INT, F32, F32, INT, *_TABLES, *pages, F32_3, U8_1, INT, INT)


@kernel(
    _signature(U16_5, U16_4, NONE, NONE),
    _signature(F32_5, F32_4, NONE, NONE),
    _signature(I8_5, I8_4, F32_3, F32_3),
)
def prepare_qkv(  # type: ignore[no-untyped-def]
    qkv,
    bias,
    q_norm,
    k_norm,
    qk_mode,
    clip,
    eps,
    head_dim,
    cos,
    sin,
    positions,
    slots,
    k_pages,
    v_pages,
    k_scales,
    v_scales,
    q_out,
    finite,
    begin,
    end,
):
    """Finish the projections of tokens begin <= t < end and put their keys and values into the cache.

    qkv: [tokens, (heads + 2·kv_heads)·Dp] float32, rows q | k | v, used as scratch. In the order of OLMoE:
    add bias, RMSNorm of q and k (qk_mode), clamp q, k and v to ±clip (0 is off), rotate the two halves of
    every head of q and k,  x1·cos - x2·sin | x2·cos + x1·sin, round k and v to the page type, store.

    bias: padded like a qkv row, or of length 0. q_norm, k_norm: [Dp] for QK_HEAD, [heads·Dp] and
    [kv_heads·Dp] for QK_FULL, padding zero; of length 0 for QK_NONE. cos, sin: [positions, head_dim / 2].
    positions: token positions; slots: page·page_size + offset of each token.
    k_pages: [pages, kv_heads, page_size / 16, Dp, 16], v_pages: [pages, kv_heads, page_size, Dp], both
    float32, both bf16 bits, or both int8 with one scale for every token and head, absmax / 127
    (kernels/quantise.py): k_scales, v_scales: [pages, kv_heads, page_size] float32, else None.
    q_out: [tokens, heads, Dp] float32. Padding of Dp is stored as zero.
    finite[t] becomes 0, and zeros are stored, where a row or its norms hold NaN or Inf; else it is 1.
    """
    _, heads, padded = q_out.shape
    _, kv_heads, size, _ = v_pages.shape
    half, spans = head_dim // 2, heads + 2 * kv_heads
    row = qkv.shape[1] * 4
    k_first = heads * padded
    for t in range(begin, end):
        byte = t * row
        _add_row(qkv, byte, bias)
        good = _norm_heads(qkv, byte, heads, padded, head_dim, q_norm, qk_mode, eps)
        good = _norm_heads(qkv, byte + k_first * 4, kv_heads, padded, head_dim, k_norm, qk_mode, eps) and good
        good = _is_finite(qkv, t) and good
        finite[t] = good
        if not good:
            for i in range(qkv.shape[1]):
                qkv[t, i] = _ZERO
        if clip > _ZERO:
            _clip_row(qkv, byte, qkv.shape[1], clip)
        _rotate_token(qkv, t, half, cos, sin, positions[t], q_out, kv_heads)
    # Head by head: a tile of keys has a cache line for every element of sixteen tokens' keys.
    for first in range(begin, end, TILE):
        for head in range(kv_heads):
            for t in range(first, min(first + TILE, end)):
                page, inside = slots[t] // size, slots[t] % size
                store_key(k_pages, k_scales, page, head, inside, qkv, t * spans + head)
                store_value(v_pages, v_scales, page, head, inside, qkv, t * spans + heads + kv_heads + head)
