"""No instruction set at all: the byte dot product as plain LLVM IR, for any CPU LLVM knows."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.extending import intrinsic

from kernels.simd.registers import dot_signature
from kernels.simd.vectors import I16, I32, LANES, constant, vector

DOT_BIAS = 0
WIDE_TILE = True

_WORDS = vector(I16, 2 * LANES)


def _add_pairs(builder: Any, a: Any, b: Any) -> Any:
    """Σ of a[2i] b[2i] and a[2i+1] b[2i+1] as int32: the multiply-add of 16-bit pairs that most CPUs have."""
    wide = vector(I32, 2 * LANES)
    product = builder.mul(builder.sext(a, wide), builder.sext(b, wide))
    undefined = ir.Constant(wide, ir.Undefined)
    even = ir.Constant(vector(I32), [2 * i for i in range(LANES)])
    odd = ir.Constant(vector(I32), [2 * i + 1 for i in range(LANES)])
    return builder.add(
        builder.shuffle_vector(product, undefined, even), builder.shuffle_vector(product, undefined, odd)
    )


@intrinsic
def dot_u8s8(typing: Any, acc: Any, u: Any, s: Any) -> Any:
    """acc[i] + Σ_j u[4i+j] s[4i+j]; u unsigned, s signed bytes, wrapping int32."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        acc, u, s = args[0], builder.bitcast(args[1], _WORDS), builder.bitcast(args[2], _WORDS)
        byte = constant(_WORDS, 8)
        even_u, odd_u = builder.and_(u, constant(_WORDS, 0xFF)), builder.lshr(u, byte)
        even_s, odd_s = builder.ashr(builder.shl(s, byte), byte), builder.ashr(s, byte)
        acc = builder.add(acc, _add_pairs(builder, even_u, even_s))
        return builder.add(acc, _add_pairs(builder, odd_u, odd_s))

    return dot_signature, generate


dot_u7s8 = dot_u8s8
