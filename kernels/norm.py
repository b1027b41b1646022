"""RMSNorm with one summation order for every CPU: 32 virtual lanes and a fixed tree."""

from __future__ import annotations

import numpy as np

from kernels.jit import F32, F32_1R, F32_2, F32_2R, INT, U8_1, VOID, inline, kernel
from kernels.simd import fma, load_f32x16, reduce_add_f32, splat_f32, store_f32x16

_ZERO, _ONE = np.float32(0.0), np.float32(1.0)


@inline
def dot32(a, a_byte, b, b_byte, width):  # type: ignore[no-untyped-def]
    """Dot product of `width` float32 (a multiple of 16) at byte offsets of two arrays.

    Lane i mod 32 sums the products with index i in ascending order by fused multiply-adds; lane j is then
    added to lane j + 16, and the sixteen are folded 8, 4, 2, 1.
    """
    low, high = splat_f32(_ZERO), splat_f32(_ZERO)
    for i in range(0, width * 4 - 64, 128):
        low = fma(load_f32x16(a, a_byte + i), load_f32x16(b, b_byte + i), low)
        high = fma(load_f32x16(a, a_byte + i + 64), load_f32x16(b, b_byte + i + 64), high)
    if width & 16:
        last = width * 4 - 64
        low = fma(load_f32x16(a, a_byte + last), load_f32x16(b, b_byte + last), low)
    return reduce_add_f32(low + high)


@inline
def inverse_rms(sum_squares, width, eps):  # type: ignore[no-untyped-def]
    """1 / sqrt(sum / width + eps) in float32, by an IEEE square root and division."""
    return _ONE / np.sqrt(sum_squares / np.float32(width) + eps)


@kernel(VOID(F32_2R, F32_1R, F32, INT, F32_2, U8_1, INT, INT))
def rms_norm(x, weight, eps, width, out, finite, begin, end):  # type: ignore[no-untyped-def]
    """out[t] = (x[t] * 1 / sqrt(mean(x[t]²) + eps)) * weight for rows begin <= t < end.

    x, out: [tokens, Hp] float32, Hp a multiple of 64, columns from `width` (the model's hidden size) on are
    zero in x and in weight [Hp]. The mean is over `width`. Order of multiplication as in Hugging Face.
    finite[t] becomes 1, or 0 with a row of zeros where the sum of squares is not finite: NaN and Inf
    do not spread.
    """
    row = x.shape[1] * 4
    for t in range(begin, end):
        total = dot32(x, t * row, x, t * row, x.shape[1])
        good = np.isfinite(total)
        finite[t] = good
        if not good:
            for i in range(0, row, 64):
                store_f32x16(out, t * row + i, splat_f32(_ZERO))
            continue
        scale = splat_f32(inverse_rms(total, width, eps))
        for i in range(0, row, 64):
            store_f32x16(out, t * row + i, load_f32x16(x, t * row + i) * scale * load_f32x16(weight, i))
