"""Slow, obvious twins of the trunk kernels: float64 numpy, one formula a function, no SIMD, no layout tricks.

Float results are compared within bounds that the tests state; integer results must be equal.
"""

from __future__ import annotations

import math
from typing import Any

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


def to_int8(x: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Heads [..., width] to integers and a scale each: s = absmax / 127, q = roundeven(x · (127 / absmax)).

    In float32, operation by operation as the contract says it; a head below 2^-100 is zero.
    """
    top = np.abs(x).max(-1)
    zero = top < np.float32(2.0**-100)
    safe = np.where(zero, np.float32(1), top)
    factor = np.where(zero, np.float32(0), np.float32(127) / safe)[..., None]
    q = np.clip(np.rint(x * factor), -127, 127).astype(np.int8)
    return q, np.where(zero, np.float32(0), top / np.float32(127))


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


def plan_dispatch(ids: NDArray[np.int32], owner: NDArray[np.int32], nodes: int) -> dict[str, list[Any]]:
    """What each node is sent, node by node; names as in kernels.permute.plan_dispatch."""
    plan: dict[str, list[Any]] = {
        "row_start": [0],
        "pair_start": [0],
        "rows": [],
        "counts": [],
        "experts": [],
    }
    index = np.full(ids.shape, -1)
    for node in range(nodes):
        for t in range(len(ids)):
            ranks = [r for r in range(ids.shape[1]) if owner[ids[t, r]] == node]
            if ranks:
                plan["rows"].append(t)
                plan["counts"].append(len(ranks))
            for r in ranks:
                index[t, r] = len(plan["experts"])
                plan["experts"].append(int(ids[t, r]))
        plan["row_start"].append(len(plan["rows"]))
        plan["pair_start"].append(len(plan["experts"]))
    return plan | {"index": index.tolist()}


def kept(z: NDArray[np.float32], p: NDArray[np.float32], top_k: int, top_p: float, min_p: float) -> list[int]:
    """Ids that the filters leave, ascending: z ranks them, p = exp((z - max) / temperature) weighs them."""
    weight = [int(float(x) * 2**42) for x in p]
    ranked = sorted(range(len(z)), key=lambda i: (-float(z[i]), i))
    if 0 < top_k < len(ranked):
        ranked = ranked[:top_k]
    if top_p < 1:
        wanted = max(1, math.ceil(float(np.float32(top_p)) * float(sum(weight[i] for i in ranked))))
        total, prefix = 0, []
        for i in ranked:
            if total >= wanted:
                break
            prefix.append(i)
            total += weight[i]
        ranked = prefix
    return sorted(i for i in ranked if min_p <= 0 or p[i] >= min(np.float32(min_p), np.float32(1)))


def draw(p: NDArray[np.float32], ids: list[int], bits: int) -> int:
    """The id whose span of the summed integer weights holds floor(bits · sum / 2^64)."""
    weight = [int(float(p[i]) * 2**42) for i in ids]
    left = bits * sum(weight) >> 64
    for i, w in zip(ids, weight, strict=True):
        left -= w
        if left < 0:
            return i
    raise AssertionError("no weight")


def philox4x32(counter: tuple[int, ...], key: tuple[int, ...]) -> tuple[int, ...]:
    """Salmon et al. 2011, figure 2, ten rounds, in Python's integers."""
    (a, b, c, d), (k, m) = counter, key
    for _ in range(10):
        x, y = 0xD2511F53 * a, 0xCD9E8D57 * c
        a, b, c, d = (y >> 32) ^ b ^ k, y & 0xFFFFFFFF, (x >> 32) ^ d ^ m, x & 0xFFFFFFFF
        k, m = (k + 0x9E3779B9) & 0xFFFFFFFF, (m + 0xBB67AE85) & 0xFFFFFFFF
    return a, b, c, d


class Pages:
    """KV pages of one sequence in a shuffled order, every slot that was never written holding NaN."""

    def __init__(
        self,
        tokens: int,
        kv_heads: int,
        head_dim: int,
        page_size: int,
        bf16: bool,
        seed: int = 0,
    ) -> None:
        self.width, self.padded = head_dim, -(-head_dim // 16) * 16
        self.bf16, self.page_size, self.tokens = bf16, page_size, tokens
        dtype, nan = (np.uint16, 0x7FC0) if bf16 else (np.float32, np.nan)
        used = -(-tokens // page_size)
        total = used + 2
        self.k = np.full((total, kv_heads, page_size // 16, self.padded, 16), nan, dtype)
        self.v = np.full((total, kv_heads, page_size, self.padded), nan, dtype)
        self.table = np.random.default_rng(seed).permutation(total)[:used].astype(np.int32)

    def slots(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        return self.table[positions // self.page_size].astype(np.int64) * self.page_size + (
            positions % self.page_size
        )

    def write(self, k: NDArray[np.float32], v: NDArray[np.float32]) -> None:
        """Put keys and values [tokens, kv_heads, head_dim] in place, rounded to the page type."""
        for t, slot in enumerate(self.slots(np.arange(len(k)))):
            page, at = divmod(int(slot), self.page_size)
            for pages, new in ((self.k[page, :, at // 16, :, at % 16], k[t]), (self.v[page, :, at], v[t])):
                pages[:] = 0
                pages[:, : self.width] = to_bf16(new) if self.bf16 else new

    def read(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Stored keys and values, [tokens, kv_heads, padded head_dim] float32."""
        heads = self.k.shape[1]
        k = self.k[self.table].transpose(0, 2, 4, 1, 3).reshape(-1, heads, self.padded)[: self.tokens]
        v = self.v[self.table].transpose(0, 2, 1, 3).reshape(-1, heads, self.padded)[: self.tokens]
        return (from_bf16(k), from_bf16(v)) if self.bf16 else (k, v)


class Int8Pages:
    """The same in int8: a scale for every token and head beside the pages; unwritten scales hold NaN."""

    def __init__(self, tokens: int, kv_heads: int, head_dim: int, page_size: int, seed: int = 0) -> None:
        self.width, self.padded = head_dim, -(-head_dim // 16) * 16
        self.page_size, self.tokens = page_size, tokens
        used = -(-tokens // page_size)
        total = used + 2
        self.k = np.full((total, kv_heads, page_size // 16, self.padded, 16), 85, np.int8)
        self.v = np.full((total, kv_heads, page_size, self.padded), 85, np.int8)
        self.k_scales = np.full((total, kv_heads, page_size), np.nan, np.float32)
        self.v_scales = self.k_scales.copy()
        self.table = np.random.default_rng(seed).permutation(total)[:used].astype(np.int32)

    def slots(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        return self.table[positions // self.page_size].astype(np.int64) * self.page_size + (
            positions % self.page_size
        )

    def write(self, k: NDArray[np.float32], v: NDArray[np.float32], first: int = 0) -> None:
        """Put keys and values [tokens, kv_heads, head_dim] of positions first … in place, head by head."""
        (qk, sk), (qv, sv) = to_int8(k), to_int8(v)
        for t, slot in enumerate(self.slots(np.arange(first, first + len(k)))):
            page, at = divmod(int(slot), self.page_size)
            for pages, new in ((self.k[page, :, at // 16, :, at % 16], qk[t]), (self.v[page, :, at], qv[t])):
                pages[:] = 0
                pages[:, : self.width] = new
            self.k_scales[page, :, at], self.v_scales[page, :, at] = sk[t], sv[t]

    def read(self) -> tuple[F64, F64]:
        """Stored keys and values, [tokens, kv_heads, padded head_dim]."""
        heads = self.k.shape[1]
        k = self.k[self.table].transpose(0, 2, 4, 1, 3).reshape(-1, heads, self.padded)
        v = self.v[self.table].transpose(0, 2, 1, 3).reshape(-1, heads, self.padded)
        scales = (s[self.table].transpose(0, 2, 1).reshape(-1, heads) for s in (self.k_scales, self.v_scales))
        values = (x * s[..., None].astype(np.float64) for x, s in zip((k, v), scales, strict=True))
        keys, found = (x[: self.tokens] for x in values)
        return keys, found
