"""NEON with the dot product extension: sdot takes signed bytes only, so the weights lose their 128 first."""

from __future__ import annotations

from typing import Any

from numba.extending import intrinsic

from kernels.simd.registers import call, dot_signature, in_parts, signed_weights

DOT_BIAS = 128
WIDE_TILE = False


def _dot_u7s8(builder: Any, acc: Any, u: Any, s: Any) -> Any:
    return call(builder, "llvm.aarch64.neon.sdot.v4i32.v16i8", acc.type, acc, u, s)


def _dot_u8s8(builder: Any, acc: Any, u: Any, s: Any) -> Any:
    return _dot_u7s8(builder, acc, signed_weights(builder, u), s)


@intrinsic
def dot_u8s8(typing: Any, acc: Any, u: Any, s: Any) -> Any:
    """acc[i] + Σ_j (u[4i+j] - 128) s[4i+j]; u unsigned, s signed bytes, wrapping int32."""
    return dot_signature, in_parts(4, _dot_u8s8)


@intrinsic
def dot_u7s8(typing: Any, acc: Any, u: Any, s: Any) -> Any:
    """acc[i] + Σ_j u[4i+j] s[4i+j]; u <= 127, which a signed byte holds as it is."""
    return dot_signature, in_parts(4, _dot_u7s8)
