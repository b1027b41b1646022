"""AVX-512 VNNI: one vpdpbusd on 512 bits."""

from __future__ import annotations

from typing import Any

from numba.extending import intrinsic

from kernels.simd.registers import as_bytes, call, dot_signature
from kernels.simd.vectors import i32x16

DOT_BIAS = 0
WIDE_TILE = True


@intrinsic
def dot_u8s8(typing: Any, acc: Any, u: Any, s: Any) -> Any:
    """acc[i] + Σ_j u[4i+j] s[4i+j]; u unsigned, s signed bytes, wrapping int32 (vpdpbusds would saturate)."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        operands = [args[0], as_bytes(builder, args[1]), as_bytes(builder, args[2])]
        return call(builder, "llvm.x86.avx512.vpdpbusd.512", i32x16.ir, *operands)

    return dot_signature, generate


dot_u7s8 = dot_u8s8
