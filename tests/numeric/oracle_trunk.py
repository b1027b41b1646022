"""Slow, obvious twins of the trunk kernels: float64 numpy, one formula a function, no SIMD, no layout tricks.

Float results are compared within bounds that the tests state; integer results must be equal.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]


def to_bf16(x: NDArray[np.float32]) -> NDArray[np.uint16]:
    """float32 to bf16 bits, to nearest even, in integers."""
    bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(x), ((bits >> 16) | 0x40).astype(np.uint16), rounded)


def from_bf16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def rms_norm(x: F64, weight: F64, eps: float, width: int) -> F64:
    """x [..., ≥ width]: the mean of squares is over the true width."""
    mean = (x.astype(np.float64) ** 2).sum(-1, keepdims=True) / width
    return x / np.sqrt(mean + eps) * weight


def rotate(x: F64, cos: F64, sin: F64) -> F64:
    """x [tokens, heads, head_dim]; cos, sin [tokens, head_dim / 2]: the halves of a head turn together."""
    half = x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    c, s = cos[:, None, :], sin[:, None, :]
    return np.concatenate([a * c - b * s, b * c + a * s], axis=-1)


def softmax(x: F64) -> F64:
    p = np.exp(x - x.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def attend(q: F64, k: F64, v: F64, position: int, window: int, scale: float) -> F64:
    """One token: q [heads, d], k and v [tokens, kv_heads, d] of the whole sequence; returns [heads, d]."""
    start = max(0, position - window + 1) if window else 0
    group = q.shape[0] // k.shape[1]
    out = np.empty_like(q)
    for head in range(q.shape[0]):
        seen_k, seen_v = (x[start : position + 1, head // group] for x in (k, v))
        out[head] = softmax(seen_k @ q[head] * scale) @ seen_v
    return out


def gate(
    probabilities: NDArray[np.float32], k: int, renormalise: bool
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Top-k of each row by (probability descending, expert ascending)."""
    order = np.argsort(-probabilities, axis=-1, kind="stable")[:, :k].astype(np.int32)
    weights = np.take_along_axis(probabilities, order, -1).astype(np.float64)
    return order, weights / weights.sum(-1, keepdims=True) if renormalise else weights
