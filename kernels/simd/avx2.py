"""AVX2 without VNNI: vpmaddubsw adds two products in a saturating int16, which must never be reached.

|w| <= 128 against |s| <= 127: 2 * 128 * 127 = 32,512 fits, so dot_u8s8 takes w = u - 128, moves the sign of w
to s and multiplies |w| (NUMERICS section 8). u <= 127 needs neither: 2 * 127 * 127 = 32,258.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.extending import intrinsic

from kernels.simd.registers import call, dot_signature, in_parts, signed_weights
from kernels.simd.vectors import I16, constant, vector

DOT_BIAS = 128
WIDE_TILE = False

_BYTES, _WORDS = vector(ir.IntType(8), 32), vector(I16, 16)


def _dot_u7s8(builder: Any, acc: Any, u: Any, s: Any) -> Any:
    words = call(builder, "llvm.x86.avx2.pmadd.ub.sw", _WORDS, u, s)
    return builder.add(acc, call(builder, "llvm.x86.avx2.pmadd.wd", acc.type, words, constant(_WORDS, 1)))


def _dot_u8s8(builder: Any, acc: Any, u: Any, s: Any) -> Any:
    w = signed_weights(builder, u)
    magnitude = call(builder, "llvm.abs.v32i8", _BYTES, w, ir.Constant(ir.IntType(1), 0))
    return _dot_u7s8(builder, acc, magnitude, call(builder, "llvm.x86.avx2.psign.b", _BYTES, s, w))


@intrinsic
def dot_u8s8(typing: Any, acc: Any, u: Any, s: Any) -> Any:
    """acc[i] + Σ_j (u[4i+j] - 128) s[4i+j]; u unsigned, s signed bytes and never -128, wrapping int32."""
    return dot_signature, in_parts(2, _dot_u8s8)


@intrinsic
def dot_u7s8(typing: Any, acc: Any, u: Any, s: Any) -> Any:
    """acc[i] + Σ_j u[4i+j] s[4i+j]; u <= 127."""
    return dot_signature, in_parts(2, _dot_u7s8)
