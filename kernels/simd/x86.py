"""AVX-512 VNNI."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic

from kernels.simd.vectors import I8, i32x16, vector

_BYTES = vector(I8, 64)


@intrinsic
def dot_u8s8(typing: Any, acc: Any, u: Any, s: Any) -> Any:
    """acc[i] + sum over j < 4 of u[4i+j] * s[4i+j], u unsigned, s signed bytes, wrapping int32 (vpdpbusd)."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = ir.FunctionType(i32x16.ir, [i32x16.ir, _BYTES, _BYTES])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.x86.avx512.vpdpbusd.512")
        return builder.call(
            function, [args[0], builder.bitcast(args[1], _BYTES), builder.bitcast(args[2], _BYTES)]
        )

    return i32x16(i32x16, i32x16, i32x16), generate
