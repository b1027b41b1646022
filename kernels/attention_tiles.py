# mypy: disable-error-code="no-untyped-def,no-untyped-call"
"""Register tiles of attention: eight rows, or one, against the keys or values of a 64-token block.

Rows lie at a constant stride in queries, scores and outputs: row i of the queries at element
q_at + i * q_step, of the scores at byte s_at + i * s_step. A tile of eight that has fewer rows computes its
last one several times, and stores the same values each time.
"""

from __future__ import annotations

import numpy as np

from kernels.jit import inline
from kernels.kv import TILE, in_tile, key_scales
from kernels.simd import fma, load_f32, load_f32x16, select_lt, splat_f32, store_f32x16
from kernels.simd.elements import load_elements

ROWS = 8
_ZERO = np.float32(0.0)


@inline
def places(at, step, rows):
    """at + i * step of eight rows, of which `rows` exist."""
    last = rows - 1
    return (
        at,
        at + min(1, last) * step,
        at + min(2, last) * step,
        at + min(3, last) * step,
        at + min(4, last) * step,
        at + min(5, last) * step,
        at + min(6, last) * step,
        at + min(7, last) * step,
    )


@inline
def query(q, at):
    return splat_f32(load_f32(q, at * 4))


@inline
def put_scores(scores, byte, dots, scales, scale):
    """Sixteen scores from q · k and the scales of the keys, if they have any."""
    if scales is not None:
        dots = dots * scales
    store_f32x16(scores, byte, dots * splat_f32(scale))


@inline
def score_1(q, at, k_pages, k_scales, tiles, scale, scores, byte):
    """One row against the four key tiles of a block: four chains hide the latency of one."""
    a, b, c, d = tiles
    s0 = splat_f32(_ZERO)
    s1 = s0
    s2 = s0
    s3 = s0
    for i in range(k_pages.shape[3]):
        x = query(q, at + i)
        s0 = fma(x, load_elements(k_pages, a + i * TILE), s0)
        s1 = fma(x, load_elements(k_pages, b + i * TILE), s1)
        s2 = fma(x, load_elements(k_pages, c + i * TILE), s2)
        s3 = fma(x, load_elements(k_pages, d + i * TILE), s3)
    put_scores(scores, byte, s0, key_scales(k_scales, k_pages, a), scale)
    put_scores(scores, byte + 64, s1, key_scales(k_scales, k_pages, b), scale)
    put_scores(scores, byte + 128, s2, key_scales(k_scales, k_pages, c), scale)
    put_scores(scores, byte + 192, s3, key_scales(k_scales, k_pages, d), scale)


@inline
def score_8(q, q_rows, k_pages, k_scales, a, b, scale, scores, s_rows, column):
    """Eight rows against the two key tiles at elements a and b. q_rows, s_rows: `places`; column: bytes."""
    q0, q1, q2, q3, q4, q5, q6, q7 = q_rows
    a0 = splat_f32(_ZERO)
    a1 = a0
    a2 = a0
    a3 = a0
    a4 = a0
    a5 = a0
    a6 = a0
    a7 = a0
    b0 = a0
    b1 = a0
    b2 = a0
    b3 = a0
    b4 = a0
    b5 = a0
    b6 = a0
    b7 = a0
    for i in range(k_pages.shape[3]):
        ka = load_elements(k_pages, a + i * TILE)
        kb = load_elements(k_pages, b + i * TILE)
        x = query(q, q0 + i)
        a0 = fma(x, ka, a0)
        b0 = fma(x, kb, b0)
        x = query(q, q1 + i)
        a1 = fma(x, ka, a1)
        b1 = fma(x, kb, b1)
        x = query(q, q2 + i)
        a2 = fma(x, ka, a2)
        b2 = fma(x, kb, b2)
        x = query(q, q3 + i)
        a3 = fma(x, ka, a3)
        b3 = fma(x, kb, b3)
        x = query(q, q4 + i)
        a4 = fma(x, ka, a4)
        b4 = fma(x, kb, b4)
        x = query(q, q5 + i)
        a5 = fma(x, ka, a5)
        b5 = fma(x, kb, b5)
        x = query(q, q6 + i)
        a6 = fma(x, ka, a6)
        b6 = fma(x, kb, b6)
        x = query(q, q7 + i)
        a7 = fma(x, ka, a7)
        b7 = fma(x, kb, b7)
    ca = key_scales(k_scales, k_pages, a)
    cb = key_scales(k_scales, k_pages, b)
    put_scores(scores, s_rows[0] + column, a0, ca, scale)
    put_scores(scores, s_rows[1] + column, a1, ca, scale)
    put_scores(scores, s_rows[2] + column, a2, ca, scale)
    put_scores(scores, s_rows[3] + column, a3, ca, scale)
    put_scores(scores, s_rows[4] + column, a4, ca, scale)
    put_scores(scores, s_rows[5] + column, a5, ca, scale)
    put_scores(scores, s_rows[6] + column, a6, ca, scale)
    put_scores(scores, s_rows[7] + column, a7, ca, scale)
    put_scores(scores, s_rows[0] + column + 64, b0, cb, scale)
    put_scores(scores, s_rows[1] + column + 64, b1, cb, scale)
    put_scores(scores, s_rows[2] + column + 64, b2, cb, scale)
    put_scores(scores, s_rows[3] + column + 64, b3, cb, scale)
    put_scores(scores, s_rows[4] + column + 64, b4, cb, scale)
    put_scores(scores, s_rows[5] + column + 64, b5, cb, scale)
    put_scores(scores, s_rows[6] + column + 64, b6, cb, scale)
    put_scores(scores, s_rows[7] + column + 64, b7, cb, scale)


@inline
def add_to(out, at, value):
    """out[at …] += sixteen values; at: element."""
    store_f32x16(out, at * 4, load_f32x16(out, at * 4) + value)


@inline
def weigh_1x4(scores, byte, v_pages, tiles, start, stop, column, out, at):
    """out += sum of p_j v_j over start <= j < stop, columns column … column + 63 of the head.

    byte: of p_start in the scores; tiles: `value_tiles` of the block. Sums start at zero and join `out` at
    the end.
    """
    width = v_pages.shape[3]
    o0 = splat_f32(_ZERO)
    o1 = o0
    o2 = o0
    o3 = o0
    token = start
    while token < stop:
        end = min((token // TILE + 1) * TILE, stop)
        v = in_tile(tiles, width, token) + column
        for j in range(token, end):
            p = splat_f32(load_f32(scores, byte + (j - start) * 4))
            o0 = fma(p, load_elements(v_pages, v), o0)
            o1 = fma(p, load_elements(v_pages, v + 16), o1)
            o2 = fma(p, load_elements(v_pages, v + 32), o2)
            o3 = fma(p, load_elements(v_pages, v + 48), o3)
            v += width
        token = end
    add_to(out, at, o0)
    add_to(out, at + 16, o1)
    add_to(out, at + 32, o2)
    add_to(out, at + 48, o3)


@inline
def weigh_1x1(scores, byte, v_pages, tiles, start, stop, column, out, at):
    """The same for columns column … column + 15."""
    width = v_pages.shape[3]
    total = splat_f32(_ZERO)
    token = start
    while token < stop:
        end = min((token // TILE + 1) * TILE, stop)
        v = in_tile(tiles, width, token) + column
        for j in range(token, end):
            p = splat_f32(load_f32(scores, byte + (j - start) * 4))
            total = fma(p, load_elements(v_pages, v), total)
            v += width
        token = end
    add_to(out, at, total)


@inline
def joined(p, v, total, guarded):
    """total + p v. Guarded: total alone where p is zero, as it is for a token that the row does not see."""
    value = fma(p, v, total)
    if guarded:
        return select_lt(splat_f32(_ZERO), p, value, total)
    return value


@inline
def weigh_span(scores, s_rows, shift, v_pages, tiles, start, stop, column, guarded, sums):
    """The sixteen sums of eight rows and two columns of sixteen, continued over start <= j < stop."""
    p0, p1, p2, p3, p4, p5, p6, p7 = s_rows
    a0, a1, a2, a3, a4, a5, a6, a7, b0, b1, b2, b3, b4, b5, b6, b7 = sums
    width = v_pages.shape[3]
    token = start
    while token < stop:
        end = min((token // TILE + 1) * TILE, stop)
        v = in_tile(tiles, width, token) + column
        for j in range(token, end):
            at = j * 4 - shift
            va = load_elements(v_pages, v)
            vb = load_elements(v_pages, v + 16)
            p = splat_f32(load_f32(scores, p0 + at))
            a0 = joined(p, va, a0, guarded)
            b0 = joined(p, vb, b0, guarded)
            p = splat_f32(load_f32(scores, p1 + at))
            a1 = joined(p, va, a1, guarded)
            b1 = joined(p, vb, b1, guarded)
            p = splat_f32(load_f32(scores, p2 + at))
            a2 = joined(p, va, a2, guarded)
            b2 = joined(p, vb, b2, guarded)
            p = splat_f32(load_f32(scores, p3 + at))
            a3 = joined(p, va, a3, guarded)
            b3 = joined(p, vb, b3, guarded)
            p = splat_f32(load_f32(scores, p4 + at))
            a4 = joined(p, va, a4, guarded)
            b4 = joined(p, vb, b4, guarded)
            p = splat_f32(load_f32(scores, p5 + at))
            a5 = joined(p, va, a5, guarded)
            b5 = joined(p, vb, b5, guarded)
            p = splat_f32(load_f32(scores, p6 + at))
            a6 = joined(p, va, a6, guarded)
            b6 = joined(p, vb, b6, guarded)
            p = splat_f32(load_f32(scores, p7 + at))
            a7 = joined(p, va, a7, guarded)
            b7 = joined(p, vb, b7, guarded)
            v += width
        token = end
    return a0, a1, a2, a3, a4, a5, a6, a7, b0, b1, b2, b3, b4, b5, b6, b7


@inline
def weigh_8x2(scores, s_rows, shift, v_pages, tiles, span, column, out, o_rows):
    """out += sum of p_j v_j for eight rows, columns column … column + 31 of the head.

    span: (start, plain, stop): no row sees tokens outside start <= j < stop, every row sees those before
    `plain`. The weight of token j lies at byte s_rows[i] + 4 j - shift.
    """
    start, plain, stop = span
    z = splat_f32(_ZERO)
    sums = (z, z, z, z, z, z, z, z, z, z, z, z, z, z, z, z)
    sums = weigh_span(scores, s_rows, shift, v_pages, tiles, start, plain, column, False, sums)
    sums = weigh_span(scores, s_rows, shift, v_pages, tiles, plain, stop, column, True, sums)
    a0, a1, a2, a3, a4, a5, a6, a7, b0, b1, b2, b3, b4, b5, b6, b7 = sums
    # Rows that stand in for missing ones share a place: all of it is read before any of it is written.
    o0, o1, o2, o3, o4, o5, o6, o7 = o_rows
    a0 = load_f32x16(out, o0 * 4) + a0
    a1 = load_f32x16(out, o1 * 4) + a1
    a2 = load_f32x16(out, o2 * 4) + a2
    a3 = load_f32x16(out, o3 * 4) + a3
    a4 = load_f32x16(out, o4 * 4) + a4
    a5 = load_f32x16(out, o5 * 4) + a5
    a6 = load_f32x16(out, o6 * 4) + a6
    a7 = load_f32x16(out, o7 * 4) + a7
    b0 = load_f32x16(out, o0 * 4 + 64) + b0
    b1 = load_f32x16(out, o1 * 4 + 64) + b1
    b2 = load_f32x16(out, o2 * 4 + 64) + b2
    b3 = load_f32x16(out, o3 * 4 + 64) + b3
    b4 = load_f32x16(out, o4 * 4 + 64) + b4
    b5 = load_f32x16(out, o5 * 4 + 64) + b5
    b6 = load_f32x16(out, o6 * 4 + 64) + b6
    b7 = load_f32x16(out, o7 * 4 + 64) + b7
    store_f32x16(out, o0 * 4, a0)
    store_f32x16(out, o1 * 4, a1)
    store_f32x16(out, o2 * 4, a2)
    store_f32x16(out, o3 * 4, a3)
    store_f32x16(out, o4 * 4, a4)
    store_f32x16(out, o5 * 4, a5)
    store_f32x16(out, o6 * 4, a6)
    store_f32x16(out, o7 * 4, a7)
    store_f32x16(out, o0 * 4 + 64, b0)
    store_f32x16(out, o1 * 4 + 64, b1)
    store_f32x16(out, o2 * 4 + 64, b2)
    store_f32x16(out, o3 * 4 + 64, b3)
    store_f32x16(out, o4 * 4 + 64, b4)
    store_f32x16(out, o5 * 4 + 64, b5)
    store_f32x16(out, o6 * 4 + 64, b6)
    store_f32x16(out, o7 * 4 + 64, b7)
