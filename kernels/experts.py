# mypy: disable-error-code="no-untyped-def,no-untyped-call"
"""The experts' feed-forward network over all (row, expert) pairs of a step: y = down(silu(gate x) * (up x)).

Pairs are sorted by expert into groups (kernels/permute.py): group g is the pairs group_start[g] ..
group_start[g + 1], and its expert's blob starts at byte base[g] of `w`. One call does a phase for all
groups; its work items begin..end are group * blocks + block, so that threads can split them. No result
depends on the split or on the other pairs:

    gate_up_int -> quantise_planes -> down_int      int8 and int4 blobs
    ffn_int                                         the three in one call, its items whole groups
    gate_up_float -> down_float                     bf16 and f32 blobs

A blob is the gate_up matrix (blocks alternate: gate block i, up block i) over K = Hp inputs, then, at byte
down_offset, the down matrix over K = Fp inputs.
"""

from __future__ import annotations

from kernels.blocks import block_at, row_scales, run_at, scales_at
from kernels.dots import STREAMS, tile_1, tile_2, tile_4
from kernels.jit import (
    BYTES,
    F32_1,
    F32_1R,
    F32_2,
    F32_2R,
    I8_2,
    I8_2R,
    I32_2,
    I32_2R,
    I64_1R,
    INT,
    U16_2,
    VOID,
    inline,
    kernel,
    splice,
)
from kernels.layout import ROWS
from kernels.prefill import MANY, down_many, gate_up_many
from kernels.quantise import bf16_of_row, planes_of_rows
from kernels.simd import keep, load_f32x16, place, readonly, stream_end
from kernels.simd.wide import piece
from kernels.slabs import ffn_group, slab_scratch
from kernels.tiles import chain_1, chain_4, put, put_planes, swiglu, swiglu_int


@inline
def put_gate_up(out, pair, block, w, scales, step, sums, scale):
    """out of a tile of STREAMS blocks, gate and up in turn; their row scales are `step` bytes apart in w."""
    for i in range(0, STREAMS, 2):
        gate_scales = load_f32x16(w, scales + i * step)
        up_scales = load_f32x16(w, scales + (i + 1) * step)
        y = swiglu_int(piece(sums, i), piece(sums, i + 1), scale, gate_scales, up_scales)
        put(out, pair, block + i // 2, y)


gate_up_1, gate_up_2, gate_up_4 = tile_1(STREAMS), tile_2(STREAMS), tile_4(STREAMS)
block_1, block_2 = tile_1(1), tile_2(1)
down_2, down_4 = gate_up_2, gate_up_4


@splice
def gate_up_tile(w, kind, at, step, follow, row_of, q, sums, scale, out, block, pair, stop):
    """Pairs pair..stop with the STREAMS blocks from byte `at` on: outputs from `block` on."""
    scales = scales_at(kind, at, q.shape[1])
    while pair + 4 <= stop:
        r0, r1, r2, r3 = row_of[pair], row_of[pair + 1], row_of[pair + 2], row_of[pair + 3]
        a, b, c, d = gate_up_4(w, kind, at, step, follow, q, q, sums, sums, r0, r1, r2, r3)
        put_gate_up(out, pair, block, w, scales, step, a, scale[r0])
        put_gate_up(out, pair + 1, block, w, scales, step, b, scale[r1])
        put_gate_up(out, pair + 2, block, w, scales, step, c, scale[r2])
        put_gate_up(out, pair + 3, block, w, scales, step, d, scale[r3])
        pair += 4
    if pair + 2 <= stop:
        r0, r1 = row_of[pair], row_of[pair + 1]
        a, b = gate_up_2(w, kind, at, step, follow, q, q, sums, sums, r0, r1)
        put_gate_up(out, pair, block, w, scales, step, a, scale[r0])
        put_gate_up(out, pair + 1, block, w, scales, step, b, scale[r1])
        pair += 2
    if pair < stop:
        row = row_of[pair]
        a = gate_up_1(w, kind, at, step, follow, q, sums, row)
        put_gate_up(out, pair, block, w, scales, step, a, scale[row])


@splice
def gate_up_block(w, base, row_of, q, sums, scale, out, block, pair, stop):
    """Pairs pair..stop with one gate and one up block, which may differ in kind."""
    width = q.shape[1]
    gate_at, gate_kind = block_at(w, base, 2 * block)
    up_at, up_kind = block_at(w, base, 2 * block + 1)
    gate_scales = row_scales(w, gate_kind, gate_at, width)
    up_scales = row_scales(w, up_kind, up_at, width)
    for p in range(pair, stop):
        row = row_of[p]
        gate = block_1(w, gate_kind, gate_at, 0, up_at, q, sums, row)
        up = block_1(w, up_kind, up_at, 0, up_at, q, sums, row)
        put(out, p, block, swiglu_int(gate, up, scale[row], gate_scales, up_scales))


@inline
def next_tile(w, base, offset, group, at, step, left, done, more):
    """Where reading goes on after `done` of the `left` items of a group: in it, or in the next group.

    more: whether items follow after this group's.
    """
    if done < left:
        return at + done * step
    if more:
        following, _ = block_at(w, base[group + 1] + offset, 0)
        return following
    return at


@splice
def gate_up_items(w, base, group_start, row_of, q, sums, scale, width_blocks, out, begin, end):
    item = begin
    while item < end:
        group = item // width_blocks
        block = item % width_blocks
        pair, stop = group_start[group], group_start[group + 1]
        left = min(width_blocks - block, end - item)
        if stop - pair >= MANY:
            item += left
            continue
        kind, at, step = run_at(w, base[group], 2 * block, 2 * left, STREAMS)
        if step:
            done = STREAMS // 2
            follow = next_tile(w, base, 0, group, at, 2 * step, left, done, item + left < end)
            gate_up_tile(w, kind, at, step, follow, row_of, q, sums, scale, out, block, pair, stop)
        else:
            done = 1
            gate_up_block(w, base[group], row_of, q, sums, scale, out, block, pair, stop)
        item += done


@kernel(VOID(BYTES, I64_1R, I64_1R, I64_1R, I8_2R, I32_2R, F32_1R, INT, F32_2, INT, INT))
def gate_up_int(w, base, group_start, row_of, q, sums, scale, width_blocks, out, begin, end):
    """out[p] = silu(gate x) * (up x) of the input row row_of[p], one activation plane.

    base [G], group_start [G + 1], row_of [P] int64; q [T, Hp] int8, sums [T, Hp/64] int32, scale [T];
    width_blocks = Fp / 16; out [P, Fp] float32; items of begin..end: group * width_blocks + block.
    """
    gate_up_many(w, base, group_start, row_of, q, sums, scale, width_blocks, out, begin, end)
    gate_up_items(w, base, group_start, row_of, q, sums, scale, width_blocks, out, begin, end)


@splice
def down_tile(w, kind, at, step, follow, hi, lo, sums_hi, sums_lo, scale, out, order, block, pair, stop):
    """Pairs pair..stop with the STREAMS down blocks from byte `at` on: outputs from `block` on."""
    scales = scales_at(kind, at, hi.shape[1])
    while pair + 2 <= stop:
        then = pair + 1
        a, b, c, d = down_4(w, kind, at, step, follow, hi, lo, sums_hi, sums_lo, pair, pair, then, then)
        put_planes(out, order[pair], block, STREAMS, w, scales, step, a, b, scale[pair])
        put_planes(out, order[then], block, STREAMS, w, scales, step, c, d, scale[then])
        pair += 2
    if pair < stop:
        a, b = down_2(w, kind, at, step, follow, hi, lo, sums_hi, sums_lo, pair, pair)
        put_planes(out, order[pair], block, STREAMS, w, scales, step, a, b, scale[pair])


@splice
def down_block(w, kind, at, hi, lo, sums_hi, sums_lo, scale, out, order, block, pair, stop):
    """The same with one block."""
    scales = scales_at(kind, at, hi.shape[1])
    for p in range(pair, stop):
        a, b = block_2(w, kind, at, 0, at, hi, lo, sums_hi, sums_lo, p, p)
        put_planes(out, order[p], block, 1, w, scales, 0, a, b, scale[p])


@splice
def down_items(w, base, down_offset, group_start, hi, lo, sums_hi, sums_lo, scale, out, order, begin, end):
    blocks = out.shape[1] // ROWS
    item = begin
    while item < end:
        group = item // blocks
        block = item % blocks
        pair, stop = group_start[group], group_start[group + 1]
        left = min(blocks - block, end - item)
        if stop - pair >= MANY:
            item += left
            continue
        kind, at, step = run_at(w, base[group] + down_offset, block, left, STREAMS)
        if step:
            done = STREAMS
            follow = next_tile(w, base, down_offset, group, at, step, left, done, item + left < end)
            down_tile(
                w, kind, at, step, follow, hi, lo, sums_hi, sums_lo, scale, out, order, block, pair, stop
            )
        else:
            done = 1
            down_block(w, kind, at, hi, lo, sums_hi, sums_lo, scale, out, order, block, pair, stop)
        item += done


@kernel(
    VOID(BYTES, I64_1R, INT, I64_1R, I8_2R, I8_2R, I32_2R, I32_2R, F32_1R, F32_2, I64_1R, INT, INT),
)
def down_int(w, base, down_offset, group_start, hi, lo, sums_hi, sums_lo, scale, out, order, begin, end):
    """out[order[p]] = down h[p], two activation planes.

    hi, lo [P, Fp] int8, sums_* [P, Fp/64] int32, scale [P]; out [P, Hp] float32; order [P] int64;
    items of begin..end: group * (Hp / 16) + block.
    """
    down_many(w, base, down_offset, group_start, hi, lo, sums_hi, sums_lo, scale, out, order, begin, end)
    down_items(w, base, down_offset, group_start, hi, lo, sums_hi, sums_lo, scale, out, order, begin, end)


_FFN = VOID(
    *(BYTES, I64_1R, INT, I64_1R, I64_1R, I8_2R, I32_2R, F32_1R),
    *(F32_2, I8_2, I8_2, I32_2, I32_2, F32_1, F32_2, I64_1R, U16_2, INT, INT),
)


@kernel(_FFN)
def ffn_int(
    w,
    base,
    down_offset,
    group_start,
    row_of,
    q,
    sums,
    scale,
    inner,
    hi,
    lo,
    sums_hi,
    sums_lo,
    inner_scale,
    out,
    order,
    rounded,
    begin,
    end,
):
    """gate_up_int, quantise_planes and down_int of groups begin..end, one group after the other.

    rounded: [P, Hp] uint16, the bf16 bits of their outputs, for which rows of out are scratch; or no rows,
    and outputs are wanted in out.
    Other arguments as theirs; inner [P, Fp] float32, hi, lo, sums_hi, sums_lo and inner_scale are scratch of
    which only the rows of these groups are touched.
    """
    blocks, columns = inner.shape[1] // ROWS, out.shape[1] // ROWS
    upper, lower, scales = readonly(hi), readonly(lo), readonly(inner_scale)
    sums_upper, sums_lower = readonly(sums_hi), readonly(sums_lo)
    narrow, stride = rounded.shape[0] > 0, out.shape[1]
    results = place(rounded, 0) if narrow else place(out, 0)
    width = inner.shape[1]
    x = slab_scratch(group_start, begin, end, q.shape[1], width)
    for group in range(begin, end):
        pair, stop = group_start[group], group_start[group + 1]
        if stop - pair >= MANY:
            ffn_group(
                x, w, base[group], base[group] + down_offset, row_of, q, sums, scale, width, inner_scale,
                results, stride, narrow, order, pair, stop,
            )  # fmt: skip
            continue
        first, last = group * blocks, (group + 1) * blocks
        gate_up_items(w, base, group_start, row_of, q, sums, scale, blocks, inner, first, last)
        planes_of_rows(inner, hi, lo, inner_scale, sums_hi, sums_lo, pair, stop)
        first, last = group * columns, (group + 1) * columns
        down_items(
            w,
            base,
            down_offset,
            group_start,
            upper,
            lower,
            sums_upper,
            sums_lower,
            scales,
            out,
            order,
            first,
            last,
        )
        if narrow:
            for p in range(pair, stop):
                bf16_of_row(out, rounded, order[p])
    if len(x):
        stream_end()
    keep(x)


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
