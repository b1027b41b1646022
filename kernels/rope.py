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
    U8_1,
    U16_4,
    U16_5,
    VOID,
    inline,
    kernel,
)
from kernels.norm import dot32, inverse_rms
from kernels.simd import load_f32x16, max_f32, min_f32, splat_f32, store_f32x16
from kernels.simd.elements import store_element, store_elements

QK_NONE, QK_HEAD, QK_FULL = 0, 1, 2
"""RMSNorm of q and k: none, over each head, over the whole projection."""

_ZERO = np.float32(0.0)


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
def _rotate_queries(qkv, t, heads, half, cos, sin, position, q_out):  # type: ignore[no-untyped-def]
    padded = q_out.shape[2]
    for head in range(heads):
        first = head * padded
        for i in range(half):
            a, b = qkv[t, first + i], qkv[t, first + half + i]
            c, s = cos[position, i], sin[position, i]
            q_out[t, head, i] = a * c - b * s
            q_out[t, head, half + i] = b * c + a * s
        for i in range(2 * half, padded):
            q_out[t, head, i] = _ZERO


@inline
def _store_keys(qkv, t, first, half, cos, sin, position, k_pages, slot):  # type: ignore[no-untyped-def]
    """Rotate and store the keys of one token: lane slot % 16 of every [Dp, 16] tile it belongs to."""
    _, kv_heads, tiles, padded, _ = k_pages.shape
    page, inside = slot // (tiles * 16), slot % (tiles * 16)
    for head in range(kv_heads):
        at = first + head * padded
        place = ((page * kv_heads + head) * tiles + inside // 16) * padded * 16 + inside % 16
        for i in range(half):
            a, b = qkv[t, at + i], qkv[t, at + half + i]
            c, s = cos[position, i], sin[position, i]
            store_element(k_pages, place + i * 16, a * c - b * s)
            store_element(k_pages, place + (half + i) * 16, b * c + a * s)
        for i in range(2 * half, padded):
            store_element(k_pages, place + i * 16, _ZERO)


@inline
def _store_values(qkv, byte, v_pages, slot):  # type: ignore[no-untyped-def]
    _, kv_heads, size, padded = v_pages.shape
    page, inside = slot // size, slot % size
    for head in range(kv_heads):
        place = ((page * kv_heads + head) * size + inside) * padded
        for i in range(0, padded, 16):
            store_elements(v_pages, place + i, load_f32x16(qkv, byte + (head * padded + i) * 4))


@inline
def _is_finite(qkv, t):  # type: ignore[no-untyped-def]
    total = _ZERO
    for i in range(qkv.shape[1]):
        total += qkv[t, i] * _ZERO  # NaN or Inf times zero is NaN, and stays
    return total == _ZERO


def _signature(k_pages: object, v_pages: object) -> object:
    tables = (F32_2R, F32_2R, I64_1R, I64_1R)
    return VOID(
        F32_2, F32_1R, F32_1R, F32_1R, INT, F32, F32, INT, *tables, k_pages, v_pages, F32_3, U8_1, INT, INT
    )


@kernel(_signature(U16_5, U16_4), _signature(F32_5, F32_4))
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
    float32 or both bf16 bits. q_out: [tokens, heads, Dp] float32. Padding of Dp is stored as zero.
    finite[t] becomes 0, and zeros are stored, where a row or its norms hold NaN or Inf; else it is 1.
    """
    heads, padded = q_out.shape[1], q_out.shape[2]
    kv_heads, half = v_pages.shape[1], head_dim // 2
    row = qkv.shape[1] * 4
    k_first, v_first = heads * padded, (heads + kv_heads) * padded
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
        _rotate_queries(qkv, t, heads, half, cos, sin, positions[t], q_out)
        _store_keys(qkv, t, k_first, half, cos, sin, positions[t], k_pages, slots[t])
        _store_values(qkv, byte + v_first * 4, v_pages, slots[t])
