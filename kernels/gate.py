"""The gate: float32 logits, softmax, top-k, and Qwen2-MoE's sigmoid gate of the shared expert."""

from __future__ import annotations

import numpy as np

from kernels.jit import F32_1R, F32_2, F32_2R, F32_3R, I32_2, INT, VOID, inline, kernel
from kernels.maths import exp_f32x16
from kernels.norm import dot32
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
from kernels.simd.elements import select_first

_ZERO, _ONE = np.float32(0.0), np.float32(1.0)
_LOWEST = np.float32(-np.inf)
_TAKEN = np.float32(-1.0)


@inline
def _four_rows(h, gate, out, t, block):  # type: ignore[no-untyped-def]
    """Logits of one block of sixteen experts for rows t … t + 3, sharing the weight loads."""
    width = h.shape[1]
    row, base, stride = t * width * 4, block * width * 64, out.shape[1] * 4
    a, b, c, d = splat_f32(_ZERO), splat_f32(_ZERO), splat_f32(_ZERO), splat_f32(_ZERO)
    for k in range(width):
        w = load_f32x16(gate, base + k * 64)
        x = row + k * 4
        a = fma(splat_f32(load_f32(h, x)), w, a)
        b = fma(splat_f32(load_f32(h, x + width * 4)), w, b)
        c = fma(splat_f32(load_f32(h, x + width * 8)), w, c)
        d = fma(splat_f32(load_f32(h, x + width * 12)), w, d)
    place = t * stride + block * 64
    store_f32x16(out, place, a)
    store_f32x16(out, place + stride, b)
    store_f32x16(out, place + 2 * stride, c)
    store_f32x16(out, place + 3 * stride, d)


@inline
def _four_blocks(h, gate, out, t, block):  # type: ignore[no-untyped-def]
    """Logits of blocks block … block + 3 for row t: four chains in flight hide the latency of one."""
    width = h.shape[1]
    row, size = t * width * 4, width * 64
    base = block * size
    a, b, c, d = splat_f32(_ZERO), splat_f32(_ZERO), splat_f32(_ZERO), splat_f32(_ZERO)
    for k in range(width):
        x = splat_f32(load_f32(h, row + k * 4))
        w = base + k * 64
        a = fma(x, load_f32x16(gate, w), a)
        b = fma(x, load_f32x16(gate, w + size), b)
        c = fma(x, load_f32x16(gate, w + 2 * size), c)
        d = fma(x, load_f32x16(gate, w + 3 * size), d)
    place = t * out.shape[1] * 4 + block * 64
    store_f32x16(out, place, a)
    store_f32x16(out, place + 64, b)
    store_f32x16(out, place + 128, c)
    store_f32x16(out, place + 192, d)


@inline
def _one_block(h, gate, out, t, block):  # type: ignore[no-untyped-def]
    width = h.shape[1]
    total = splat_f32(_ZERO)
    for k in range(width):
        x = splat_f32(load_f32(h, (t * width + k) * 4))
        total = fma(x, load_f32x16(gate, (block * width + k) * 64), total)
    store_f32x16(out, t * out.shape[1] * 4 + block * 64, total)


@kernel(VOID(F32_2R, F32_3R, F32_2, INT, INT))
def gate_logits(h, gate, out, begin, end):  # type: ignore[no-untyped-def]
    """out[t, e] = sum over k of h[t, k] * gate[e, k] for rows begin <= t < end: one FMA chain, k ascending.

    h: [tokens, Hp] float32; gate: [E16 / 16, Hp, 16] float32 (lanes = experts); out: [tokens, E16].
    """
    blocks = gate.shape[0]
    t = begin
    while t + 4 <= end:
        for block in range(blocks):
            _four_rows(h, gate, out, t, block)
        t += 4
    while t < end:
        block = 0
        while block + 4 <= blocks:
            _four_blocks(h, gate, out, t, block)
            block += 4
        while block < blocks:
            _one_block(h, gate, out, t, block)
            block += 1
        t += 1


@inline
def _softmax_in_place(logits, t, experts):  # type: ignore[no-untyped-def]
    """Probabilities of row t over its first `experts` columns, zero in the padding: exp(l - max) / sum."""
    row = t * logits.shape[1] * 4
    lowest, zero = splat_f32(_LOWEST), splat_f32(_ZERO)
    best = lowest
    for i in range(0, experts, 16):
        value = select_first(experts - i, load_f32x16(logits, row + i * 4), lowest)
        best = max_f32(value, best)
    top = splat_f32(reduce_max_f32(best))
    low, high = zero, zero
    for i in range(0, experts, 16):
        p = select_first(experts - i, exp_f32x16(load_f32x16(logits, row + i * 4) - top), zero)
        store_f32x16(logits, row + i * 4, p)
        if i & 16:
            high = high + p
        else:
            low = low + p
    total = splat_f32(reduce_add_f32(low + high))
    for i in range(0, experts, 16):
        store_f32x16(logits, row + i * 4, load_f32x16(logits, row + i * 4) / total)


@kernel(VOID(F32_2, INT, INT, INT, I32_2, F32_2, INT, INT))
def gate_topk(logits, experts, k, renormalise, ids, weights, begin, end):  # type: ignore[no-untyped-def]
    """Softmax over all `experts`, then the k largest probabilities, for rows begin <= t < end.

    logits: [tokens, E16] float32, overwritten. ids: [tokens, k] int32, weights: [tokens, k] float32, by
    descending probability, ties to the lower expert. With `renormalise` the weights are divided by their
    sum, taken in rank order. 1 <= k <= experts <= E16.
    """
    for t in range(begin, end):
        _softmax_in_place(logits, t, experts)
        total = _ZERO
        for rank in range(k):
            best, index = _TAKEN, 0
            for e in range(experts):
                if logits[t, e] > best:
                    best, index = logits[t, e], e
            logits[t, index] = _TAKEN
            ids[t, rank] = index
            weights[t, rank] = best
            total += best
        if renormalise:
            for rank in range(k):
                weights[t, rank] /= total


@kernel(VOID(F32_2R, F32_1R, F32_2, INT, INT))
def sigmoid_gate(h, weight, y, begin, end):  # type: ignore[no-untyped-def]
    """y[t] *= 1 / (1 + exp(-h[t] · weight)) for rows begin <= t < end (Qwen2-MoE's shared expert).

    h, y: [tokens, Hp] float32; weight: [Hp] float32. The dot product is `norm.dot32`.
    """
    row = h.shape[1] * 4
    one = splat_f32(_ONE)
    for t in range(begin, end):
        score = splat_f32(-dot32(h, t * row, weight, 0, h.shape[1]))
        factor = one / (one + exp_f32x16(score))
        for i in range(0, row, 64):
            store_f32x16(y, t * row + i, load_f32x16(y, t * row + i) * factor)
