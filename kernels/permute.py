"""Moving rows: which node gets which rows, rows into messages, pairs by expert, and the combination."""

from __future__ import annotations

import numpy as np

from kernels.jit import (
    F32_1R,
    F32_2,
    F32_2R,
    I8_2R,
    I32_1,
    I32_1R,
    I32_2,
    I32_2R,
    I64_1,
    I64_1R,
    INT,
    U8_1,
    U8_1R,
    U16_2R,
    VOID,
    inline,
    kernel,
)
from kernels.quantise import sums_of_rows
from kernels.simd import fma, load_f32x16, load_i32x16, splat_f32, store_f32x16, store_i32x16
from kernels.simd.elements import load_elements, store_f32

_ZERO = np.float32(0.0)

ABSENT = -2
"""What `arrange_int8` returns if a blob is not there."""


@inline
def _count_per_node(ids, owner, row_start, pair_start):  # type: ignore[no-untyped-def]
    """Leave in start[n + 1] where node n begins: the place that filling node n moves on to its end."""
    tokens, k = ids.shape
    for node in range(row_start.size):
        row_start[node] = pair_start[node] = 0
    for t in range(tokens):
        for r in range(k):
            node = owner[ids[t, r]]
            pair_start[node + 1] += 1
            seen = False
            for earlier in range(r):
                seen = seen or owner[ids[t, earlier]] == node
            if not seen:
                row_start[node + 1] += 1
    rows = pairs = 0
    for node in range(1, row_start.size):
        here, those = row_start[node], pair_start[node]
        row_start[node], pair_start[node] = rows, pairs
        rows += here
        pairs += those


@kernel(VOID(I32_2R, I32_1R, I64_1, I64_1, I32_1, U8_1, I32_1, I32_2))
def plan_dispatch(ids, owner, row_start, pair_start, rows, counts, experts, index):  # type: ignore[no-untyped-def]
    """Plan one message per node for the experts chosen by each token.

    ids: [T, k] expert ids in gate rank order; owner: [E] node of each expert, 0 <= owner < N.
    row_start, pair_start: int64 [N + 1], filled. Of node n, rows[row_start[n] : row_start[n + 1]] are the
    tokens, ascending, with at least one expert there, counts (k <= 255) how many each has; its pairs
    experts[pair_start[n] : pair_start[n + 1]] lie by row, then gate rank. index[t, r] = the pair of token
    t's rank-r expert, counted over all nodes. Room needed: rows and counts min(N, k)·T, experts T·k.
    """
    tokens, k = ids.shape
    _count_per_node(ids, owner, row_start, pair_start)
    for t in range(tokens):
        for r in range(k):
            expert = ids[t, r]
            node = owner[expert]
            pair = pair_start[node + 1]
            experts[pair] = expert
            index[t, r] = pair
            pair_start[node + 1] = pair + 1
            first = True
            for earlier in range(r):
                first = first and owner[ids[t, earlier]] != node
            if first:
                row = row_start[node + 1]
                rows[row] = t
                counts[row] = 1
                row_start[node + 1] = row + 1
            else:
                counts[row_start[node + 1] - 1] += 1


@kernel(VOID(I8_2R, F32_1R, I32_1R, I64_1R, U8_1))
def gather_int8(q, scales, rows, row_start, out):  # type: ignore[no-untyped-def]
    """Payloads of all nodes: node n's from byte row_start[n]·(Hp + 4) on, its rows, then its scales.

    q: [T, Hp] int8, Hp a multiple of 64; scales: [T] float32; out: uint8 [>= row_start[N]·(Hp + 4)].
    """
    width = q.shape[1]
    for node in range(row_start.size - 1):
        begin, end = row_start[node], row_start[node + 1]
        place = begin * (width + 4)
        for row in range(begin, end):
            for i in range(0, width, 64):
                store_i32x16(out, place + i, load_i32x16(q, rows[row] * width + i))
            place += width
        for row in range(begin, end):
            store_f32(out, place, scales[rows[row]])
            place += 4


@kernel(VOID(I32_2R, I32_1R, I8_2R, F32_1R, I64_1, I64_1, I32_1, U8_1, I32_1, I32_2, U8_1))
def plan_int8(ids, owner, q, scales, row_start, pair_start, rows, counts, experts, index, out):  # type: ignore[no-untyped-def]
    """plan_dispatch and gather_int8 in one call: the rows of most calls are few."""
    plan_dispatch(ids, owner, row_start, pair_start, rows, counts, experts, index)
    gather_int8(q, scales, rows, row_start, out)


@kernel(VOID(F32_2R, I32_1R, I64_1R, U8_1))
def gather_f32(x, rows, row_start, out):  # type: ignore[no-untyped-def]
    """The same for float32 rows, x: [T, Hp]: row r of all nodes together lies at byte r·Hp·4."""
    width = x.shape[1] * 4
    for row in range(row_start[row_start.size - 1]):
        for i in range(0, width, 64):
            store_i32x16(out, row * width + i, load_i32x16(x, rows[row] * width + i))


@inline
def _sort_pairs(counts, experts, n_experts, order, row_of, group_expert, group_start):  # type: ignore[no-untyped-def]
    pairs = experts.size
    total = np.int64(0)
    for row in range(counts.size):
        total += counts[row]
    if total != pairs:
        return -1
    place = np.zeros(n_experts, np.int64)
    for p in range(pairs):
        if experts[p] < 0 or experts[p] >= n_experts:
            return -1
        place[experts[p]] += 1
    groups, start = 0, np.int64(0)
    for expert in range(n_experts):
        size = place[expert]
        place[expert] = start
        if size:
            group_expert[groups] = expert
            group_start[groups] = start
            groups += 1
            start += size
    group_start[groups] = pairs
    p = 0
    for row in range(counts.size):
        for _ in range(counts[row]):
            at = place[experts[p]]
            place[experts[p]] = at + 1
            order[at], row_of[at] = p, row
            p += 1
    return groups


@kernel(INT(U8_1R, I32_1R, INT, I64_1, I64_1, I32_1, I64_1))
def group_pairs(counts, experts, n_experts, order, row_of, group_expert, group_start):  # type: ignore[no-untyped-def]
    """Sort (row, expert) pairs stably by expert; returns the number of groups G.

    counts: [R] experts of each row; experts: [P] in request order. order[p] = the place in request order of
    sorted pair p, row_of[p] = its row; group g < G holds the sorted pairs group_start[g] … group_start[g + 1]
    of expert group_expert[g], ascending. Returns -1, having written nothing, if the counts do not add up
    to P or an expert is not in 0 … n_experts - 1: the request came over a wire.
    """
    return _sort_pairs(counts, experts, n_experts, order, row_of, group_expert, group_start)


@kernel(INT(U8_1R, I32_1R, I64_1R, I8_2R, I64_1, I64_1, I64_1, I64_1, I32_2))
def arrange_int8(counts, experts, offsets, q, order, row_of, base, group_start, sums):  # type: ignore[no-untyped-def]
    """`group_pairs` and what else kernels/experts.py takes of int8 rows: the groups' blobs, the rows' sums.

    offsets: [E] int64, where each expert's blob starts, below 0 for one that is not there; base [P] int64 =
    the offset of each group's expert; q: [R, Hp] int8, sums: [R, Hp / 64] int32 = Σ of each 64-group.
    Returns what group_pairs returns, or ABSENT.
    """
    groups = _sort_pairs(counts, experts, offsets.size, order, row_of, base, group_start)
    for group in range(groups):
        base[group] = offsets[base[group]]
        if base[group] < 0:
            return ABSENT
    sums_of_rows(q, sums, 0, counts.size)
    return groups


def _combine_signature(rows: object) -> object:
    return VOID(F32_2, rows, I32_2R, F32_2R, F32_2R, INT, INT)


@kernel(_combine_signature(U16_2R), _combine_signature(F32_2R))
def combine(x, rows, index, weights, extra, begin, end):  # type: ignore[no-untyped-def]
    """x[t] += (sum over rank r of weights[t, r] · rows[index[t, r]]) + extra[t] for begin <= t < end.

    The sum starts at 0 and runs in rank order by fused multiply-adds, whatever order the rows came in.
    x: [T, Hp] float32, Hp a multiple of 64; rows: [P, Hp] float32 or bf16 bits; index: [T, k] int32;
    weights: [T, k] float32; extra: [T, Hp] float32, the shared expert's output, or [0, Hp] for none.
    """
    width, k = x.shape[1], index.shape[1]
    for t in range(begin, end):
        for i in range(0, width, 64):
            a, b, c, d = splat_f32(_ZERO), splat_f32(_ZERO), splat_f32(_ZERO), splat_f32(_ZERO)
            for r in range(k):
                w = splat_f32(weights[t, r])
                row = index[t, r] * width + i
                a = fma(w, load_elements(rows, row), a)
                b = fma(w, load_elements(rows, row + 16), b)
                c = fma(w, load_elements(rows, row + 32), c)
                d = fma(w, load_elements(rows, row + 48), d)
            place = (t * width + i) * 4
            if extra.shape[0] > 0:
                a = a + load_f32x16(extra, place)
                b = b + load_f32x16(extra, place + 64)
                c = c + load_f32x16(extra, place + 128)
                d = d + load_f32x16(extra, place + 192)
            store_f32x16(x, place, load_f32x16(x, place) + a)
            store_f32x16(x, place + 64, load_f32x16(x, place + 64) + b)
            store_f32x16(x, place + 128, load_f32x16(x, place + 128) + c)
            store_f32x16(x, place + 192, load_f32x16(x, place + 192) + d)
