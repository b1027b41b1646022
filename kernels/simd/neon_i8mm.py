"""NEON with the int8 matrix extension: usdot takes the weights as they are stored."""

from __future__ import annotations

from typing import Any

from numba.extending import intrinsic

from kernels.simd.registers import call, dot_signature, in_parts

DOT_BIAS = 0
WIDE_TILE = False


def _dot(builder: Any, acc: Any, u: Any, s: Any) -> Any:
    return call(builder, "llvm.aarch64.neon.usdot.v4i32.v16i8", acc.type, acc, u, s)


@intrinsic
def dot_u8s8(typing: Any, acc: Any, u: Any, s: Any) -> Any:
    """acc[i] + Σ_j u[4i+j] s[4i+j]; u unsigned, s signed bytes, wrapping int32."""
    return dot_signature, in_parts(4, _dot)


dot_u7s8 = dot_u8s8
