# mypy: disable-error-code="no-untyped-def,no-untyped-call"
"""Products of 16 or 32 activation rows and two weight blocks: tile registers where there are any.

multiply_1 and multiply_2 take one or two *activation tiles* of 16 rows, int8 [K/64][16][64], and two int8
blocks [K/4][16][4], and add `steps` times 64 inputs to int32 products [tile][block][16 rows][16 outputs]:

    x           scratch; it holds the activations at a0 and a1; the products are at `out`, 1024 bytes each
    w0, w1      where the two blocks' inputs lie
    fresh       whether the products start at 0; else they are what `out` holds
    side(work, turn)  is called with ascending turns from `turn` on, after every other step and the last: work
                on vectors and memory, for which tile instructions leave the rest of the core idle
                (kernels/panels.py says what)

Between tiles_begin() and tiles_end(), on one thread. The integers are exact, so every way gives the same.
"""

from __future__ import annotations

from kernels.jit import ISA, inline
from kernels.simd.amx import tile_dot, tile_load, tile_store, tile_zero, tiles_close, tiles_open
from kernels.simd.ops import broadcast4, load_i32x16, prefetch, splat_i32, store_i32x16
from kernels.simd.target import dot_u8s8

TILE = 16
STEP = 1024
"""Bytes of 64 inputs of 16 rows, and of 16 x 16 int32."""


@inline
def ask(p, at):
    """The 64 inputs at byte `at` are wanted in the first-level cache; they may lie past the end."""
    for byte in range(0, STEP, 64):
        prefetch(p, at + byte)


@inline
def start_2(x, out, fresh):
    """Two products of a tile."""
    if fresh:
        tile_zero(0)
        tile_zero(1)
    else:
        tile_load(0, x, out)
        tile_load(1, x, out + STEP)


@inline
def start_4(x, out, fresh):
    start_2(x, out, fresh)
    if fresh:
        tile_zero(2)
        tile_zero(3)
    else:
        tile_load(2, x, out + 2 * STEP)
        tile_load(3, x, out + 3 * STEP)


@inline
def tile_multiply_1(x, a0, w0, w1, steps, fresh, out, side, work, turn):
    start_2(x, out, fresh)
    for step in range(steps):
        at = step * STEP
        tile_load(4, x, a0 + at)
        tile_load(6, w0, at)
        tile_load(7, w1, at)
        tile_dot(0, 4, 6)
        tile_dot(1, 4, 7)
        ask(w0, at + STEP)
        ask(w1, at + STEP)
        if step % 2 == 1 or step == steps - 1:
            side(work, turn + step // 2)
    tile_store(0, x, out)
    tile_store(1, x, out + STEP)


@inline
def step_forth(x, a0, a1, w0, w1, then):
    """Four products, one after the other sharing a factor; a factor that is done gives way to its next.

    then: byte of the next 64 inputs. A load waits for its register's last dot, and a dot for its loads: in
    this order, each the other way round from step to step, every load has a dot or more to hide behind.
    """
    tile_dot(0, 4, 6)
    tile_dot(1, 4, 7)
    tile_load(4, x, a0 + then)
    ask(x, a0 + then + STEP)
    tile_dot(3, 5, 7)
    tile_load(7, w1, then)
    ask(w1, then + STEP)
    tile_dot(2, 5, 6)
    tile_load(6, w0, then)
    ask(w0, then + STEP)
    tile_load(5, x, a1 + then)
    ask(x, a1 + then + STEP)


@inline
def step_back(x, a0, a1, w0, w1, then):
    tile_dot(1, 4, 7)
    tile_dot(0, 4, 6)
    tile_load(4, x, a0 + then)
    ask(x, a0 + then + STEP)
    tile_dot(2, 5, 6)
    tile_load(6, w0, then)
    ask(w0, then + STEP)
    tile_dot(3, 5, 7)
    tile_load(7, w1, then)
    ask(w1, then + STEP)
    tile_load(5, x, a1 + then)
    ask(x, a1 + then + STEP)


@inline
def tile_multiply_2(x, a0, a1, w0, w1, steps, fresh, out, side, work, turn):
    """Four products and their four factors fill the eight tile registers: one load a dot.

    Loads run one step ahead; the last step loads itself once more instead of what lies past the end.
    """
    last = (steps - 1) * STEP
    start_4(x, out, fresh)
    tile_load(4, x, a0)
    tile_load(6, w0, 0)
    tile_load(7, w1, 0)
    tile_load(5, x, a1)
    for step in range(0, steps, 2):
        then = (step + 1) * STEP
        step_forth(x, a0, a1, w0, w1, min(then, last))
        if then <= last:
            step_back(x, a0, a1, w0, w1, min(then + STEP, last))
        side(work, turn + step // 2)
    tile_store(0, x, out)
    tile_store(1, x, out + STEP)
    tile_store(2, x, out + 2 * STEP)
    tile_store(3, x, out + 3 * STEP)


@inline
def dot_both(p, q, wa, wb, x, at):
    """p and q plus the four inputs at byte `at` of x, times four inputs of two blocks."""
    quad = broadcast4(x, at)
    return dot_u8s8(p, wa, quad), dot_u8s8(q, wb, quad)


@inline
def start_row(x, out, fresh):
    """A row's sums with both blocks."""
    if fresh:
        return splat_i32(0), splat_i32(0)
    return load_i32x16(x, out), load_i32x16(x, out + STEP)


@inline
def rows_8(x, a, w0, w1, steps, fresh, out):
    """Eight rows: 16 accumulators keep two dot units of latency five busy, 10 loads feed 16 dots."""
    p0, q0 = start_row(x, out, fresh)
    p1, q1 = start_row(x, out + 64, fresh)
    p2, q2 = start_row(x, out + 128, fresh)
    p3, q3 = start_row(x, out + 192, fresh)
    p4, q4 = start_row(x, out + 256, fresh)
    p5, q5 = start_row(x, out + 320, fresh)
    p6, q6 = start_row(x, out + 384, fresh)
    p7, q7 = start_row(x, out + 448, fresh)
    for step in range(steps):
        for quad in range(16):
            wa = load_i32x16(w0, step * STEP + quad * 64)
            wb = load_i32x16(w1, step * STEP + quad * 64)
            at = a + step * STEP + quad * 4
            p0, q0 = dot_both(p0, q0, wa, wb, x, at)
            p1, q1 = dot_both(p1, q1, wa, wb, x, at + 64)
            p2, q2 = dot_both(p2, q2, wa, wb, x, at + 128)
            p3, q3 = dot_both(p3, q3, wa, wb, x, at + 192)
            p4, q4 = dot_both(p4, q4, wa, wb, x, at + 256)
            p5, q5 = dot_both(p5, q5, wa, wb, x, at + 320)
            p6, q6 = dot_both(p6, q6, wa, wb, x, at + 384)
            p7, q7 = dot_both(p7, q7, wa, wb, x, at + 448)
    store_rows(x, out, p0, p1, p2, p3)
    store_rows(x, out + 256, p4, p5, p6, p7)
    store_rows(x, out + STEP, q0, q1, q2, q3)
    store_rows(x, out + STEP + 256, q4, q5, q6, q7)


@inline
def store_rows(x, at, v0, v1, v2, v3):
    store_i32x16(x, at, v0)
    store_i32x16(x, at + 64, v1)
    store_i32x16(x, at + 128, v2)
    store_i32x16(x, at + 192, v3)


@inline
def rows_2(x, a, w0, w1, steps, fresh, out):
    """Two rows, where sixteen lanes take two registers of 16, or four of 32."""
    p0, q0 = start_row(x, out, fresh)
    p1, q1 = start_row(x, out + 64, fresh)
    for step in range(steps):
        for quad in range(16):
            wa = load_i32x16(w0, step * STEP + quad * 64)
            wb = load_i32x16(w1, step * STEP + quad * 64)
            at = a + step * STEP + quad * 4
            p0, q0 = dot_both(p0, q0, wa, wb, x, at)
            p1, q1 = dot_both(p1, q1, wa, wb, x, at + 64)
    store_i32x16(x, out, p0)
    store_i32x16(x, out + 64, p1)
    store_i32x16(x, out + STEP, q0)
    store_i32x16(x, out + STEP + 64, q1)


ROWS_IN_REGISTERS = 8 if ISA == "avx512vnni" else 2
few_rows = rows_8 if ISA == "avx512vnni" else rows_2


@inline
def tile_in_registers(x, a, w0, w1, steps, fresh, out):
    for row in range(0, TILE * 64, ROWS_IN_REGISTERS * 64):
        few_rows(x, a + row, w0, w1, steps, fresh, out + row)


@inline
def vector_multiply_1(x, a0, w0, w1, steps, fresh, out, side, work, turn):
    tile_in_registers(x, a0, w0, w1, steps, fresh, out)
    for step in range(0, steps, 2):  # vectors are busy here: nothing to gain from mixing it in
        side(work, turn + step // 2)


@inline
def vector_multiply_2(x, a0, a1, w0, w1, steps, fresh, out, side, work, turn):
    tile_in_registers(x, a0, w0, w1, steps, fresh, out)
    vector_multiply_1(x, a1, w0, w1, steps, fresh, out + 2 * STEP, side, work, turn)


@inline
def nothing():
    """Vector registers need no configuration."""


if ISA == "amx":
    multiply_1, multiply_2 = tile_multiply_1, tile_multiply_2
    tiles_begin, tiles_end = tiles_open, tiles_close
else:
    multiply_1, multiply_2 = vector_multiply_1, vector_multiply_2
    tiles_begin, tiles_end = nothing, nothing
