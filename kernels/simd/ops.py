"""Operations on SIMD values that are the same LLVM IR on every CPU.

Loads and stores take a C-contiguous array of any shape and a *byte* offset from its first element; they
need no alignment and check no bounds: the kernel's caller has.
"""

from __future__ import annotations

import operator
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.imputils import impl_ret_borrowed
from numba.core.typing.templates import ConcreteTemplate, infer_global, signature
from numba.extending import intrinsic, lower_builtin

from kernels.simd.vectors import FLOAT, I8, I16, I32, I64, constant, f32x16, i32x16, vector

V_I32, V_F32 = i32x16.ir, f32x16.ir

PLACE = types.CPointer(types.uint8)


def address(context: Any, builder: Any, array_type: Any, array: Any, offset: Any, pointee: ir.Type) -> Any:
    """Pointer `offset` bytes into the array or from a place in one (never inttoptr: it blinds LLVM)."""
    if isinstance(array_type, types.CPointer):
        data = array
    else:
        data = cgutils.create_struct_proxy(array_type)(context, builder, array).data
    place = builder.gep(builder.bitcast(data, I8.as_pointer()), [offset])
    return builder.bitcast(place, pointee.as_pointer())


def _require_contiguous(array_type: Any) -> None:
    if array_type == PLACE:
        return
    if not isinstance(array_type, types.Array) or array_type.layout != "C":
        raise TypeError(f"SIMD loads and stores need a C-contiguous array, got {array_type}")


def _load(context: Any, builder: Any, sig: Any, args: Any, pointee: ir.Type) -> Any:
    value = builder.load(address(context, builder, sig.args[0], args[0], args[1], pointee))
    value.align = 1
    return value


def _store(context: Any, builder: Any, sig: Any, args: Any, value: Any) -> Any:
    place = address(context, builder, sig.args[0], args[0], args[1], value.type)
    builder.store(value, place).align = 1
    return context.get_dummy_value()


@intrinsic
def readonly(typing: Any, array: Any) -> Any:
    """The same array as a type that is not written to: one compiled helper serves it and read-only inputs."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return impl_ret_borrowed(context, builder, sig.return_type, args[0])

    return types.Array(array.dtype, array.ndim, array.layout, readonly=True)(array), generate


def _loader(result: Any, pointee: ir.Type, widen: Any = None) -> Any:
    @intrinsic
    def load(typing: Any, array: Any, offset: Any) -> Any:
        _require_contiguous(array)

        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            value = _load(context, builder, sig, args, pointee)
            return widen(builder, value) if widen else value

        return result(array, types.intp), generate

    return load


def widen_bf16(builder: Any, value: Any) -> Any:
    """bf16 bits to float32: the upper half of the word. Exact."""
    return builder.bitcast(builder.shl(builder.zext(value, V_I32), constant(V_I32, 16)), V_F32)


def narrow_bf16(builder: Any, value: Any) -> Any:
    """float32 to bf16 bits, to nearest even, in integers (LLVM's fptrunc may flush denormals); keeps NaN."""
    bits = builder.bitcast(value, V_I32)
    odd = builder.and_(builder.lshr(bits, constant(V_I32, 16)), constant(V_I32, 1))
    rounded = builder.lshr(builder.add(bits, builder.add(odd, constant(V_I32, 0x7FFF))), constant(V_I32, 16))
    quiet = builder.or_(builder.lshr(bits, constant(V_I32, 16)), constant(V_I32, 0x40))
    is_nan = builder.fcmp_unordered("uno", value, value)
    return builder.trunc(builder.select(is_nan, quiet, rounded), vector(I16))


load_i32x16 = _loader(i32x16, V_I32)
load_f32x16 = _loader(f32x16, V_F32)
load_bf16x16 = _loader(f32x16, vector(I16), widen_bf16)
load_u8x16 = _loader(i32x16, vector(I8), lambda builder, v: builder.zext(v, V_I32))
load_i8x16 = _loader(i32x16, vector(I8), lambda builder, v: builder.sext(v, V_I32))
load_i64 = _loader(types.int64, I64)
load_f32 = _loader(types.float32, FLOAT)
load_bf16 = _loader(
    types.float32, I16, lambda builder, v: builder.bitcast(builder.shl(builder.zext(v, I32), I32(16)), FLOAT)
)


def _storer(vec: Any, narrow: Any = None) -> Any:
    @intrinsic
    def store(typing: Any, array: Any, offset: Any, value: Any) -> Any:
        _require_contiguous(array)

        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return _store(context, builder, sig, args, narrow(builder, args[2]) if narrow else args[2])

        return types.void(array, types.intp, vec), generate

    return store


store_i32x16 = _storer(i32x16)
store_f32x16 = _storer(f32x16)
store_bf16x16 = _storer(f32x16, narrow_bf16)
store_i8x16 = _storer(i32x16, lambda builder, v: builder.trunc(v, vector(I8)))


def _splat_ir(builder: Any, scalar: Any, vec: ir.VectorType) -> Any:
    undefined = ir.Constant(vec, ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(I32, 0))
    return builder.shuffle_vector(first, undefined, constant(vector(I32, vec.count), 0))


@intrinsic
def place(typing: Any, array: Any, offset: Any) -> Any:
    """The place `offset` bytes into an array, or further on from a place; loads and stores take either.

    For inner loops that carry their operands in tuples, or choose between two arrays: a place is an address
    and nothing more. It does not keep its array alive; an argument of the kernel outlives it, an array made
    in the kernel needs `keep` after the last use of its places.
    """
    _require_contiguous(array)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return address(context, builder, sig.args[0], args[0], args[1], I8)

    return PLACE(array, types.intp), generate


@intrinsic
def keep(typing: Any, array: Any) -> Any:
    """Nothing, except that an array which is used here cannot have been freed before."""
    return types.void(array), lambda context, builder, sig, args: context.get_dummy_value()


@intrinsic
def splat_i32(typing: Any, value: Any) -> Any:
    """All lanes = value (converted to int32)."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _splat_ir(builder, args[0], V_I32)

    return i32x16(types.int32), generate


@intrinsic
def splat_f32(typing: Any, value: Any) -> Any:
    """All lanes = value (must be a float32: a float64 literal would hide a double rounding)."""
    if value not in (types.float32,):
        raise TypeError(f"splat_f32 takes a float32, got {value}; write np.float32(...)")

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _splat_ir(builder, args[0], V_F32)

    return f32x16(types.float32), generate


@intrinsic
def broadcast4(typing: Any, array: Any, offset: Any) -> Any:
    """The four bytes at `offset` in every lane: one k-quad of activations against 16 rows of weights."""
    _require_contiguous(array)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _splat_ir(builder, _load(context, builder, sig, args, I32), V_I32)

    return i32x16(array, types.intp), generate


def emit_prefetch(builder: Any, place: Any, locality: int = 3) -> None:
    """llvm.prefetch of an i8 pointer, for reading. locality: 3, every level of cache; 2, not the first."""
    kind = ir.FunctionType(ir.VoidType(), [place.type, I32, I32, I32])
    function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
    builder.call(function, [place, I32(0), I32(locality), I32(1)])


def _prefetcher(locality: int) -> Any:
    @intrinsic
    def ask(typing: Any, array: Any, offset: Any) -> Any:
        _require_contiguous(array)

        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            emit_prefetch(builder, address(context, builder, sig.args[0], args[0], args[1], I8), locality)
            return context.get_dummy_value()

        return types.void(array, types.intp), generate

    return ask


prefetch = _prefetcher(3)
"""Ask for the cache line at `offset`, which may lie outside the array: a hint, never a fault."""

prefetch_l2 = _prefetcher(2)
"""The same, into the second-level cache alone: for lines that the first would lose before they are used."""


def _streamer(narrow: Any = None) -> Any:
    @intrinsic
    def stream(typing: Any, array: Any, offset: Any, value: Any) -> Any:
        _require_contiguous(array)

        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            value = narrow(builder, args[2]) if narrow else args[2]
            size = 32 if narrow else 64
            to = address(context, builder, sig.args[0], args[0], args[1], value.type)
            excess = builder.and_(builder.ptrtoint(to, I64), I64(size - 1))
            with builder.if_else(builder.icmp_unsigned("==", excess, I64(0))) as (aligned, elsewhere):
                with aligned:
                    store = builder.store(value, to)
                    store.align = size
                    store.set_metadata("nontemporal", builder.module.add_metadata([I32(1)]))
                with elsewhere:
                    builder.store(value, to).align = 1
            return context.get_dummy_value()

        return types.void(array, types.intp, f32x16), generate

    return stream


stream_f32x16 = _streamer()
"""Store past the caches where the place is aligned to its 64 bytes, plainly elsewhere.

For lines that nobody reads soon. `stream_end` comes before anybody else may.
"""

stream_bf16x16 = _streamer(narrow_bf16)
"""The same in 32 bytes, as store_bf16x16; two that fill a line leave as one."""


@intrinsic
def stream_end(typing: Any) -> Any:
    """Everything streamed before is in memory before anything that follows."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


def _unary(result: Any, operand: Any, emit: Any) -> Any:
    @intrinsic
    def op(typing: Any, a: Any) -> Any:
        return result(operand), lambda context, builder, sig, args: emit(builder, args[0])

    return op


def _intrinsic_call(builder: Any, name: str, vec: Any, *args: Any) -> Any:
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(vec, [vec] * len(args)), name)
    return builder.call(function, args)


def _fold(builder: Any, value: Any, combine: Any) -> Any:
    """Fixed tree over 16 lanes: lane i with i+8, then i+4, i+2, i+1. The order is part of the contract."""
    count = value.type.count
    while count > 1:
        count //= 2
        low = ir.Constant(vector(I32, count), list(range(count)))
        high = ir.Constant(vector(I32, count), list(range(count, 2 * count)))
        undefined = ir.Constant(value.type, ir.Undefined)
        value = combine(
            builder.shuffle_vector(value, undefined, low), builder.shuffle_vector(value, undefined, high)
        )
    return builder.extract_element(value, ir.Constant(I32, 0))


def _select_max(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


to_f32 = _unary(f32x16, i32x16, lambda builder, a: builder.sitofp(a, V_F32))
to_i32 = _unary(i32x16, f32x16, lambda builder, a: builder.fptosi(a, V_I32))
bits_of = _unary(i32x16, f32x16, lambda builder, a: builder.bitcast(a, V_I32))
float_of_bits = _unary(f32x16, i32x16, lambda builder, a: builder.bitcast(a, V_F32))
round_even = _unary(
    f32x16, f32x16, lambda builder, a: _intrinsic_call(builder, "llvm.roundeven.v16f32", V_F32, a)
)
reduce_add_f32 = _unary(types.float32, f32x16, lambda builder, a: _fold(builder, a, builder.fadd))
reduce_add_i32 = _unary(types.int32, i32x16, lambda builder, a: _fold(builder, a, builder.add))
reduce_max_f32 = _unary(
    types.float32, f32x16, lambda builder, a: _fold(builder, a, lambda x, y: _select_max(builder, x, y))
)


@intrinsic
def fma(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c with one rounding; the only way a fused multiply-add comes into a kernel."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _intrinsic_call(builder, "llvm.fma.v16f32", V_F32, *args)

    return f32x16(f32x16, f32x16, f32x16), generate


def _binary(vec: Any, emit: Any) -> Any:
    @intrinsic
    def op(typing: Any, a: Any, b: Any) -> Any:
        return vec(vec, vec), lambda context, builder, sig, args: emit(builder, args[0], args[1])

    return op


# Compare and select, not the min/max instructions: x86 and ARM differ on NaN and on the sign of zero.
max_f32 = _binary(f32x16, _select_max)
min_f32 = _binary(f32x16, lambda builder, a, b: builder.select(builder.fcmp_ordered("<", a, b), a, b))
bitwise_and = _binary(i32x16, lambda builder, a, b: builder.and_(a, b))


def _multiply_u16_ir(builder: Any, a: Any, b: Any) -> Any:
    halves = vector(I16, 32)
    product = builder.mul(builder.bitcast(a, halves), builder.bitcast(b, halves))
    return builder.bitcast(product, V_I32)


multiply_u16 = _binary(i32x16, _multiply_u16_ir)
"""Each 16-bit half times the same half of the other, modulo 2^16."""


def _shift(emit: Any) -> Any:
    @intrinsic
    def op(typing: Any, a: Any, count: Any) -> Any:
        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return emit(builder, args[0], _splat_ir(builder, args[1], V_I32))

        return i32x16(i32x16, types.int32), generate

    return op


shift_left = _shift(lambda builder, a, n: builder.shl(a, n))
shift_right = _shift(lambda builder, a, n: builder.lshr(a, n))
"""Logical shift right: zeros come in from the left."""


@intrinsic
def select_lt(typing: Any, a: Any, b: Any, then: Any, otherwise: Any) -> Any:
    """Lane by lane: `then` where a < b (false for NaN), else `otherwise`."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_ordered("<", args[0], args[1]), args[2], args[3])

    return f32x16(f32x16, f32x16, f32x16, f32x16), generate


def _operator(symbol: Any, emitters: dict[Any, str]) -> None:
    """Teach numba a Python operator on vectors: `a + b` in a kernel reads like the formula."""

    class Template(ConcreteTemplate):
        key = symbol
        cases = [signature(vec, vec, vec) for vec in emitters]  # noqa: RUF012

    infer_global(symbol)(Template)
    for vec, method in emitters.items():

        def lower(context: Any, builder: Any, sig: Any, args: Any, _method: str = method) -> Any:
            return getattr(builder, _method)(args[0], args[1])

        lower_builtin(symbol, vec, vec)(lower)


_operator(operator.add, {i32x16: "add", f32x16: "fadd"})
_operator(operator.sub, {i32x16: "sub", f32x16: "fsub"})
_operator(operator.mul, {i32x16: "mul", f32x16: "fmul"})
_operator(operator.truediv, {f32x16: "fdiv"})
