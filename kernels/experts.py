# mypy: disable-error-code="no-untyped-def,no-untyped-call"
"""The experts' feed-forward network over all (row, expert) pairs of a step: y = down(silu(gate x) * (up x)).

Pairs are sorted by expert into groups (kernels/permute.py): group g is the pairs group_start[g] ..
group_start[g + 1], and its expert's blob starts at byte base[g] of `w`. One call does a phase for all
groups; its work items begin..end are group * blocks + block, so that threads can split them. No result
depends on the split or on the other pairs:

    gate_up_int -> quantise_planes -> down_int      int8 and int4 blobs
    gate_up_float -> down_float                     bf16 and f32 blobs

A blob is the gate_up matrix (blocks alternate: gate block i, up block i) over K = Hp inputs, then, at byte
down_offset, the down matrix over K = Fp inputs.
"""

from __future__ import annotations

from kernels.blocks import block_at, pair_at, row_scales
from kernels.dots import dots_1, dots_2, dots_4
from kernels.jit import BYTES, F32_1R, F32_2, F32_2R, I8_2R, I32_2R, I64_1R, INT, VOID, inline, kernel
from kernels.layout import ROWS
from kernels.prefill import MANY, down_many, gate_up_many
from kernels.tiles import chain_1, chain_4, put, put_pair_planes, swiglu, swiglu_int


@inline
def dots_mixed(w, gate_kind, up_kind, gate_at, up_at, q, sums, row):
    """dots_1 for a gate block and an up block of different kinds: each alone."""
    gate, _ = dots_1(w, gate_kind, gate_at, gate_at, q, sums, row)
    up, _ = dots_1(w, up_kind, up_at, up_at, q, sums, row)
    return gate, up


@kernel(VOID(BYTES, I64_1R, I64_1R, I64_1R, I8_2R, I32_2R, F32_1R, INT, F32_2, INT, INT))
def gate_up_int(w, base, group_start, row_of, q, sums, scale, width_blocks, out, begin, end):
    """out[p] = silu(gate x) * (up x) of the input row row_of[p], one activation plane.

    base [G], group_start [G + 1], row_of [P] int64; q [T, Hp] int8, sums [T, Hp/64] int32, scale [T];
    width_blocks = Fp / 16; out [P, Fp] float32; items of begin..end: group * width_blocks + block.
    """
    width = q.shape[1]
    gate_up_many(w, base, group_start, row_of, q, sums, scale, width_blocks, out, begin, end)
    for item in range(begin, end):
        group = item // width_blocks
        block = item % width_blocks
        if group_start[group + 1] - group_start[group] >= MANY:
            continue
        gate_at, gate_kind = block_at(w, base[group], 2 * block)
        up_at, up_kind = block_at(w, base[group], 2 * block + 1)
        gate_scales = row_scales(w, gate_kind, gate_at, width)
        up_scales = row_scales(w, up_kind, up_at, width)
        pair = group_start[group]
        stop = group_start[group + 1]
        while pair + 4 <= stop and gate_kind == up_kind:
            r0, r1, r2, r3 = row_of[pair], row_of[pair + 1], row_of[pair + 2], row_of[pair + 3]
            g0, u0, g1, u1, g2, u2, g3, u3 = dots_4(
                w, gate_kind, gate_at, up_at, q, q, sums, sums, r0, r1, r2, r3
            )
            put(out, pair, block, swiglu_int(g0, u0, scale[r0], gate_scales, up_scales))
            put(out, pair + 1, block, swiglu_int(g1, u1, scale[r1], gate_scales, up_scales))
            put(out, pair + 2, block, swiglu_int(g2, u2, scale[r2], gate_scales, up_scales))
            put(out, pair + 3, block, swiglu_int(g3, u3, scale[r3], gate_scales, up_scales))
            pair += 4
        while pair < stop:
            row = row_of[pair]
            if gate_kind == up_kind:
                g0, u0 = dots_1(w, gate_kind, gate_at, up_at, q, sums, row)
            else:
                g0, u0 = dots_mixed(w, gate_kind, up_kind, gate_at, up_at, q, sums, row)
            put(out, pair, block, swiglu_int(g0, u0, scale[row], gate_scales, up_scales))
            pair += 1


@kernel(
    VOID(BYTES, I64_1R, INT, I64_1R, I8_2R, I8_2R, I32_2R, I32_2R, F32_1R, F32_2, I64_1R, INT, INT),
)
def down_int(w, base, down_offset, group_start, hi, lo, sums_hi, sums_lo, scale, out, order, begin, end):
    """out[order[p]] = down h[p], two activation planes.

    hi, lo [P, Fp] int8, sums_* [P, Fp/64] int32, scale [P]; out [P, Hp] float32; order [P] int64;
    items of begin..end: group * (Hp / 16) + block.
    """
    width = hi.shape[1]
    blocks = out.shape[1] // ROWS
    down_many(w, base, down_offset, group_start, hi, lo, sums_hi, sums_lo, scale, out, order, begin, end)
    item = begin
    while item < end:
        group = item // blocks
        block = item % blocks
        left = min(blocks, block + end - item)
        if group_start[group + 1] - group_start[group] >= MANY:
            item += left - block
            continue
        kind, at0, at1, other = pair_at(w, base[group] + down_offset, block, left)
        s0 = row_scales(w, kind, at0, width)
        s1 = row_scales(w, kind, at1, width)
        pair = group_start[group]
        stop = group_start[group + 1]
        while pair + 2 <= stop:
            r0, r1 = pair, pair + 1
            a0, b0, a1, b1, a2, b2, a3, b3 = dots_4(
                w, kind, at0, at1, hi, lo, sums_hi, sums_lo, r0, r0, r1, r1
            )
            put_pair_planes(out, order[r0], block, other, a0, b0, a1, b1, scale[r0], s0, s1)
            put_pair_planes(out, order[r1], block, other, a2, b2, a3, b3, scale[r1], s0, s1)
            pair += 2
        if pair < stop:
            a0, b0, a1, b1 = dots_2(w, kind, at0, at1, hi, lo, sums_hi, sums_lo, pair, pair)
            put_pair_planes(out, order[pair], block, other, a0, b0, a1, b1, scale[pair], s0, s1)
        item += other - block + 1


@kernel(VOID(BYTES, I64_1R, I64_1R, I64_1R, F32_2R, INT, F32_2, INT, INT))
def gate_up_float(w, base, group_start, row_of, x, width_blocks, out, begin, end):
    """gate_up_int for bf16 and f32 blobs: x [T, Hp] float32 -> out [P, Fp] float32."""
    for item in range(begin, end):
        group = item // width_blocks
        block = item % width_blocks
        gate_at, gate_kind = block_at(w, base[group], 2 * block)
        up_at, up_kind = block_at(w, base[group], 2 * block + 1)
        pair = group_start[group]
        stop = group_start[group + 1]
        while pair + 4 <= stop:
            r0, r1, r2, r3 = row_of[pair], row_of[pair + 1], row_of[pair + 2], row_of[pair + 3]
            g0, g1, g2, g3 = chain_4(w, gate_kind, gate_at, x, r0, r1, r2, r3)
            u0, u1, u2, u3 = chain_4(w, up_kind, up_at, x, r0, r1, r2, r3)
            put(out, pair, block, swiglu(g0, u0))
            put(out, pair + 1, block, swiglu(g1, u1))
            put(out, pair + 2, block, swiglu(g2, u2))
            put(out, pair + 3, block, swiglu(g3, u3))
            pair += 4
        while pair < stop:
            gate = chain_1(w, gate_kind, gate_at, x, row_of[pair])
            up = chain_1(w, up_kind, up_at, x, row_of[pair])
            put(out, pair, block, swiglu(gate, up))
            pair += 1


@kernel(VOID(BYTES, I64_1R, INT, I64_1R, F32_2R, F32_2, I64_1R, INT, INT))
def down_float(w, base, down_offset, group_start, h, out, order, begin, end):
    """down_int for bf16 and f32 blobs: h [P, Fp] float32 -> out[order[p]] [P, Hp] float32."""
    blocks = out.shape[1] // ROWS
    for item in range(begin, end):
        group = item // blocks
        block = item % blocks
        at, kind = block_at(w, base[group] + down_offset, block)
        pair = group_start[group]
        stop = group_start[group + 1]
        while pair + 4 <= stop:
            y0, y1, y2, y3 = chain_4(w, kind, at, h, pair, pair + 1, pair + 2, pair + 3)
            put(out, order[pair], block, y0)
            put(out, order[pair + 1], block, y1)
            put(out, order[pair + 2], block, y2)
            put(out, order[pair + 3], block, y3)
            pair += 4
        while pair < stop:
            put(out, order[pair], block, chain_1(w, kind, at, h, pair))
            pair += 1
