"""Loads and stores in the array's own element type, float32 or bf16 bits (uint16), and lane selection.

One kernel source serves every type of KV pages and both result types: the type of the array decides here,
when the kernel is compiled. Offsets count *elements* from the array's first; no alignment is needed and
no bounds are checked.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from kernels.simd.ops import V_F32, V_I32, _require_contiguous, _splat_ir, address, narrow_bf16, widen_bf16
from kernels.simd.vectors import FLOAT, I8, I16, I32, I64, LANES, f32x16, vector


def _is_bf16(array: Any) -> bool:
    _require_contiguous(array)
    if array.dtype not in (types.uint16, types.float32):
        raise TypeError(f"rows are float32 or bf16 bits in uint16, got {array.dtype}")
    return bool(array.dtype == types.uint16)


def _place(context: Any, builder: Any, sig: Any, args: Any, pointee: ir.Type) -> Any:
    offset = builder.mul(args[1], I64(sig.args[0].dtype.bitwidth // 8))
    return address(context, builder, sig.args[0], args[0], offset, pointee)


@intrinsic
def load_elements(typing: Any, array: Any, index: Any) -> Any:
    """Sixteen elements from `index` on, as float32; of an int8 array the integers."""
    int8 = array.dtype == types.int8
    bf16 = not int8 and _is_bf16(array)
    stored = vector(I8) if int8 else vector(I16) if bf16 else V_F32

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        value = builder.load(_place(context, builder, sig, args, stored))
        value.align = 1
        if int8:
            return builder.sitofp(value, V_F32)
        return widen_bf16(builder, value) if bf16 else value

    return f32x16(array, types.intp), generate


@intrinsic
def store_elements(typing: Any, array: Any, index: Any, value: Any) -> Any:
    """Sixteen float32 to the elements from `index` on, rounded to nearest even where they are bf16."""
    bf16 = _is_bf16(array)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        narrow = narrow_bf16(builder, args[2]) if bf16 else args[2]
        builder.store(narrow, _place(context, builder, sig, args, narrow.type)).align = 1
        return context.get_dummy_value()

    return types.void(array, types.intp, f32x16), generate


@intrinsic
def store_element(typing: Any, array: Any, index: Any, value: Any) -> Any:
    """One float32 to the element at `index`, rounded as `store_elements` rounds."""
    bf16 = _is_bf16(array)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        value = args[2]
        if bf16:  # the vector rule on lane 0: one definition of the rounding
            value = builder.extract_element(narrow_bf16(builder, _splat_ir(builder, value, V_F32)), I32(0))
        builder.store(value, _place(context, builder, sig, args, value.type)).align = 1
        return context.get_dummy_value()

    return types.void(array, types.intp, types.float32), generate


@intrinsic
def store_f32(typing: Any, array: Any, offset: Any, value: Any) -> Any:
    """One float32 at *byte* `offset` of an array of any type, such as a message buffer."""
    _require_contiguous(array)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store(args[2], address(context, builder, sig.args[0], args[0], args[1], FLOAT)).align = 1
        return context.get_dummy_value()

    return types.void(array, types.intp, types.float32), generate


@intrinsic
def select_first(typing: Any, count: Any, first: Any, rest: Any) -> Any:
    """Lanes 0 … count - 1 of `first`, the others of `rest`: the tail of a row, without a branch on lanes."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        lanes = ir.Constant(V_I32, list(range(LANES)))
        count = _splat_ir(builder, builder.trunc(args[0], I32), V_I32)
        return builder.select(builder.icmp_signed("<", lanes, count), args[1], args[2])

    return f32x16(types.int64, f32x16, f32x16), generate


@intrinsic
def multiply_high(typing: Any, a: Any, b: Any) -> Any:
    """Upper 64 bits of the 128-bit product of two uint64."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        wide = ir.IntType(128)
        product = builder.mul(builder.zext(args[0], wide), builder.zext(args[1], wide))
        return builder.trunc(builder.lshr(product, ir.Constant(wide, 64)), I64)

    return types.uint64(types.uint64, types.uint64), generate


__all__ = ["load_elements", "multiply_high", "select_first", "store_element", "store_elements", "store_f32"]
