"""The slow, obvious numpy twins of quantise, matmul and experts: bit for bit the same results.

Elementwise + − × ÷ of float32 are the same in numpy and in LLVM; fused multiply-adds are emulated exactly
in float64 with rounding to odd (Boldo and Melquiond, "Emulation of a FMA and correctly rounded sums",
2008); integers are int64 here, so that an overflow in a kernel would show.
"""

from __future__ import annotations

import numpy as np
from numeric.weights import INT4, INT8, Experts, Matrix
from numpy.typing import NDArray

F = np.float32
Floats = NDArray[np.float32]
Bytes = NDArray[np.int8]


def fma(a: Floats, b: Floats, c: Floats) -> Floats:
    """a * b + c rounded once. The product of two float32 is exact in float64; the sum is rounded to odd."""
    product = np.asarray(a, np.float64) * np.asarray(b, np.float64)
    addend = np.asarray(c, np.float64)
    total = np.asarray(product + addend)
    part = total - product
    error = (product - (total - part)) + (addend - part)
    even = (total.view(np.int64) & 1) == 0
    neighbour = np.nextafter(total, np.where(error > 0, np.inf, -np.inf))
    return np.where((error != 0) & even, neighbour, total).astype(F)


def exp(x: Floats) -> Floats:
    """The twin of kernels.maths.exp_f32x16."""
    x = np.minimum(np.maximum(x, F(-87.3)), F(88.3))
    n = np.rint(x * F(1.44269504)).astype(F)
    r = fma(n, F(-0.693359375), x)
    r = fma(n, F(2.12194440e-4), r)
    p = F(0.0013818296)
    for c in (0.008368532, 0.041668292, 0.16666523, 0.49999994, 1.0, 1.0):
        p = fma(p, r, F(c))
    return p * ((n.astype(np.int32) + 127) << 23).view(F)


def absmax_scale(x: Floats, limit: int) -> tuple[Floats, NDArray[np.int32]]:
    """(scale, integers) of each row: absmax / limit and roundeven(x * (limit / absmax)) within ±limit."""
    top = np.abs(x).max(axis=1, initial=0)
    used = top >= F(2.0**-100)
    safe = np.where(used, top, F(1))
    scale = np.where(used, safe / F(limit), F(0))
    factor = np.where(used, F(limit) / safe, F(0))
    level = np.rint(x * factor[:, None])
    return scale, np.clip(level, -limit, limit).astype(np.int32)


def sums64(q: NDArray[np.int8]) -> NDArray[np.int32]:
    return q.reshape(len(q), q.shape[1] // 64, 64).sum(axis=2, dtype=np.int32)


def quantise_rows(x: Floats) -> tuple[Bytes, Floats, NDArray[np.int32]]:
    scale, level = absmax_scale(x, 127)
    q = level.astype(np.int8)
    return q, scale, sums64(q)


def quantise_planes(
    x: Floats,
) -> tuple[Bytes, Bytes, Floats, NDArray[np.int32], NDArray[np.int32]]:
    scale, level = absmax_scale(x, 16256)
    hi = np.floor_divide(level + 64, 128)
    lo = level - 128 * hi
    hi, lo = hi.astype(np.int8), lo.astype(np.int8)
    return hi, lo, scale, sums64(hi), sums64(lo)


def round_bf16(x: Floats) -> NDArray[np.uint16]:
    bits = x.view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(x), (bits >> 16) | 0x40, rounded).astype(np.uint16)


def integers(matrix: Matrix, q: Bytes) -> NDArray[np.int64]:
    """I [T, N] of one plane; exact in int64. It must fit int32, or the contract is broken."""
    product = q.astype(np.int64) @ matrix.levels.T
    assert np.abs(product, out=np.zeros_like(product)).max(initial=0) < 2**31
    return product


def matmul_int(matrix: Matrix, planes: list[Bytes], scale: Floats) -> Floats:
    """One plane: f32(I) (s_a s_row). Two planes [hi, lo]: fma(128, f32(I_hi), f32(I_lo)) (s_a s_row)."""
    total = integers(matrix, planes[0]).astype(F)
    if len(planes) == 2:
        total = fma(F(128), total, integers(matrix, planes[1]).astype(F))
    return total * (scale[:, None] * matrix.scales[None, :])


def matmul_float(matrix: Matrix, x: Floats) -> Floats:
    total = np.zeros((len(x), len(matrix.floats)), F)
    for k in range(matrix.width):
        total = fma(matrix.floats[None, :, k], x[:, k, None], total)
    return total


def embed_rows(matrix: Matrix, ids: NDArray[np.int32]) -> Floats:
    is_integer = np.isin(matrix.kind_of_row()[ids], (INT8, INT4))[:, None]
    return np.where(
        is_integer, matrix.scales[ids][:, None] * matrix.levels[ids].astype(F), matrix.floats[ids]
    )


def swiglu(gate_up: Floats) -> Floats:
    """[T, 2F] in alternating blocks of 16 (gate, up) -> silu(gate) * up [T, F]."""
    pairs = gate_up.reshape(len(gate_up), -1, 2, 16)
    gate, up = pairs[:, :, 0], pairs[:, :, 1]
    return (gate / (F(1) + exp(F(0) - gate)) * up).reshape(len(gate_up), -1)


def expert(experts: Experts, number: int, x: Floats) -> Floats:
    """One expert's output rows [T, Hp] float32 for rows x [T, Hp], by the integer or the float path."""
    gate_up, down = experts.gate_up[number], experts.down[number]
    if gate_up.kinds[0] in (INT8, INT4):
        q, scale, _ = quantise_rows(x)
        hi, lo, scale_h, _, _ = quantise_planes(swiglu(matmul_int(gate_up, [q], scale)))
        return matmul_int(down, [hi, lo], scale_h)
    return matmul_float(down, swiglu(matmul_float(gate_up, x)))
