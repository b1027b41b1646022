"""Virtual vectors over real registers: their parts, their bytes, and calls of LLVM's intrinsics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from kernels.simd.vectors import I8, I32, LANES, constant, i32x16, vector

dot_signature = i32x16(i32x16, i32x16, i32x16)


def call(builder: Any, name: str, result: ir.Type, *args: Any) -> Any:
    """Call one of LLVM's intrinsics."""
    kind = ir.FunctionType(result, [arg.type for arg in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)


def as_bytes(builder: Any, value: Any) -> Any:
    return builder.bitcast(value, vector(I8, 4 * value.type.count))


def signed_weights(builder: Any, u: Any) -> Any:
    """u - 128 of unsigned bytes, as signed bytes."""
    return builder.xor(u, constant(u.type, 0x80))


def in_parts(count: int, dot: Callable[[Any, Any, Any, Any], Any]) -> Any:
    """Code of a dot product over i32x16 from dot(builder, acc, u, s) over one of its `count` registers.

    acc has 16 / count int32; u and s have 64 / count bytes.
    """

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        acc, u, s = ([_part(builder, arg, i, LANES // count) for i in range(count)] for arg in args)
        parts = [
            dot(builder, a, as_bytes(builder, b), as_bytes(builder, c))
            for a, b, c in zip(acc, u, s, strict=True)
        ]
        while len(parts) > 1:
            parts = [_joined(builder, low, high) for low, high in zip(parts[::2], parts[1::2], strict=True)]
        return parts[0]

    return generate


def _part(builder: Any, value: Any, index: int, lanes: int) -> Any:
    mask = ir.Constant(vector(I32, lanes), list(range(index * lanes, (index + 1) * lanes)))
    return builder.shuffle_vector(value, ir.Constant(value.type, ir.Undefined), mask)


def _joined(builder: Any, low: Any, high: Any) -> Any:
    lanes = 2 * low.type.count
    return builder.shuffle_vector(low, high, ir.Constant(vector(I32, lanes), list(range(lanes))))
