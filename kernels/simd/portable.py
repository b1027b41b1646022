"""No instruction set at all: the byte dot product as plain LLVM IR, for any CPU LLVM knows."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.extending import intrinsic

from kernels.simd.vectors import I8, I32, LANES, i32x16, vector

_BYTES = vector(I8, 64)


@intrinsic
def dot_u8s8(typing: Any, acc: Any, u: Any, s: Any) -> Any:
    """acc[i] + sum over j < 4 of u[4i+j] * s[4i+j], u unsigned, s signed bytes, wrapping int32."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        total = args[0]
        unsigned, signed = builder.bitcast(args[1], _BYTES), builder.bitcast(args[2], _BYTES)
        undefined = ir.Constant(_BYTES, ir.Undefined)
        for j in range(4):
            lanes = ir.Constant(vector(I32), [4 * i + j for i in range(LANES)])
            a = builder.zext(builder.shuffle_vector(unsigned, undefined, lanes), i32x16.ir)
            b = builder.sext(builder.shuffle_vector(signed, undefined, lanes), i32x16.ir)
            total = builder.add(total, builder.mul(a, b))
        return total

    return i32x16(i32x16, i32x16, i32x16), generate
