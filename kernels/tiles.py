# mypy: disable-error-code="no-untyped-def,no-untyped-call"
"""From inner products to outputs: scaling of integers, float chains, and stores of 16 outputs at a time."""

from __future__ import annotations

import numpy as np

from kernels.jit import inline
from kernels.layout import BF16, ROWS
from kernels.maths import exp_f32x16
from kernels.simd import (
    fma,
    load_bf16x16,
    load_f32,
    load_f32x16,
    splat_f32,
    store_f32x16,
    to_f32,
)
from kernels.simd.wide import piece

PLANE_F32 = np.float32(128)
ZERO = np.float32(0)
ONE = np.float32(1)


@inline
def scaled(integers, scale, row_scale):
    """y = f32(I) * (s_a * s_row), one plane."""
    return to_f32(integers) * (splat_f32(scale) * row_scale)


@inline
def scaled_planes(upper, lower, scale, row_scale):
    """y = fma(128, f32(I_hi), f32(I_lo)) * (s_a * s_row), two planes."""
    return fma(splat_f32(PLANE_F32), to_f32(upper), to_f32(lower)) * (splat_f32(scale) * row_scale)


@inline
def swiglu(gate, up):
    """silu(gate) * up with silu(x) = x / (1 + exp(-x))."""
    return gate / (splat_f32(ONE) + exp_f32x16(splat_f32(ZERO) - gate)) * up


@inline
def swiglu_int(gate, up, scale, gate_scales, up_scales):
    return swiglu(scaled(gate, scale, gate_scales), scaled(up, scale, up_scales))


@inline
def put(out, row, block, y):
    """out[row, 16 block : 16 block + 16] = y."""
    store_f32x16(out, (row * out.shape[1] + block * ROWS) * 4, y)


@inline
def put_sums(out, row, block, count, w, scales, step, sums, scale):
    """Scale the integers of one plane with `count` blocks and store them in out[row] from `block` on.

    sums: wide, a piece a block; the blocks' row scales are at byte `scales` of w and every `step` bytes.
    """
    for i in range(count):
        put(out, row, block + i, scaled(piece(sums, i), scale, load_f32x16(w, scales + i * step)))


@inline
def put_planes(out, row, block, count, w, scales, step, upper, lower, scale):
    """put_sums for two planes."""
    for i in range(count):
        row_scale = load_f32x16(w, scales + i * step)
        put(out, row, block + i, scaled_planes(piece(upper, i), piece(lower, i), scale, row_scale))


@inline
def float_weights(w, kind, at, k):
    """Input k of a bf16 or f32 block: 16 rows' weights."""
    if kind == BF16:
        return load_bf16x16(w, at + k * (ROWS * 2))
    return load_f32x16(w, at + k * (ROWS * 4))


@inline
def chain_1(w, kind, at, x, row):
    """Σ_k w[k] * x[row, k] as one fused chain over ascending k, a lane per output row."""
    width = x.shape[1]
    total = splat_f32(ZERO)
    for k in range(width):
        weights = float_weights(w, kind, at, k)
        total = fma(weights, splat_f32(load_f32(x, (row * width + k) * 4)), total)
    return total


@inline
def chain_4(w, kind, at, x, r0, r1, r2, r3):
    """chain_1 of four rows over one read of the weights: the same chain for each."""
    width = x.shape[1]
    t0 = splat_f32(ZERO)
    t1 = t0
    t2 = t0
    t3 = t0
    for k in range(width):
        weights = float_weights(w, kind, at, k)
        t0 = fma(weights, splat_f32(load_f32(x, (r0 * width + k) * 4)), t0)
        t1 = fma(weights, splat_f32(load_f32(x, (r1 * width + k) * 4)), t1)
        t2 = fma(weights, splat_f32(load_f32(x, (r2 * width + k) * 4)), t2)
        t3 = fma(weights, splat_f32(load_f32(x, (r3 * width + k) * 4)), t3)
    return t0, t1, t2, t3
