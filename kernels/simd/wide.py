"""Several lines of sixteen lanes in one value: a tile of weights from 2, 4 or 8 blocks at once.

A wide value holds `count` vectors of sixteen int32, one after the other; LLVM keeps them in as many
registers. Operations work piece by piece, with the instruction set's own dot product, so the bits are those
of i32x16.
"""

from __future__ import annotations

import operator
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kernels.simd.ops import V_I32, _load, _operator, _require_contiguous, address, emit_prefetch
from kernels.simd.target import dot_u7s8, dot_u8s8
from kernels.simd.vectors import I8, I32, LANES, Vector, constant, i32x16, vector

WIDE = {1: i32x16} | {count: Vector(f"i32x{LANES * count}", I32, LANES * count) for count in (2, 4, 8)}
"""Pieces: type."""


def _lanes(first: int, count: int) -> ir.Constant:
    return ir.Constant(vector(I32, count), list(range(first, first + count)))


def _join(builder: Any, parts: list[Any]) -> Any:
    """One vector of equal ones whose number is a power of two."""
    while len(parts) > 1:
        lanes = _lanes(0, 2 * parts[0].type.count)
        parts = [builder.shuffle_vector(a, b, lanes) for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def _piece(builder: Any, value: Any, number: int) -> Any:
    return builder.shuffle_vector(value, ir.Constant(value.type, ir.Undefined), _lanes(number * LANES, LANES))


def _pieces(builder: Any, value: Any) -> list[Any]:
    return [_piece(builder, value, number) for number in range(value.type.count // LANES)]


def _line_loader(pointee: ir.Type, widen: Any) -> Any:
    @intrinsic(prefer_literal=True)
    def load(typing: Any, array: Any, offset: Any, stride: Any, count: Any) -> Any:
        _require_contiguous(array)

        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            parts, place = [], args[1]
            for number in range(count.literal_value):
                place = builder.add(place, args[2]) if number else place
                value = _load(context, builder, sig, (args[0], place), pointee)
                parts.append(widen(builder, value))
            return _join(builder, parts)

        return WIDE[count.literal_value](array, types.intp, types.intp, count), generate

    return load


load_lines = _line_loader(V_I32, lambda builder, value: value)
"""load_lines(array, offset, stride, count): `count` lines of 64 bytes, `stride` bytes apart."""

load_lines_u8 = _line_loader(vector(I8), lambda builder, value: builder.zext(value, V_I32))
"""The same for 16 unsigned bytes each, widened to int32."""


@intrinsic(prefer_literal=True)
def prefetch_lines(typing: Any, array: Any, offset: Any, stride: Any, count: Any) -> Any:
    """Ask for the lines that load_lines(array, offset, stride, count) would load; they may lie outside."""
    _require_contiguous(array)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        place = args[1]
        for number in range(count.literal_value):
            place = builder.add(place, args[2]) if number else place
            emit_prefetch(builder, address(context, builder, sig.args[0], args[0], place, I8))
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, count), generate


@intrinsic(prefer_literal=True)
def repeat(typing: Any, value: Any, count: Any) -> Any:
    """`count` copies of sixteen lanes."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _join(builder, [args[0]] * count.literal_value)

    return WIDE[count.literal_value](i32x16, count), generate


@intrinsic
def join(typing: Any, low: Any, high: Any) -> Any:
    """The pieces of `low`, then those of `high`, which has as many."""
    pieces = 2 * low.ir.count // LANES

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _join(builder, list(args))

    return WIDE[pieces](low, low), generate


@intrinsic
def piece(typing: Any, value: Any, number: Any) -> Any:
    """Sixteen lanes of a wide value, through memory: for the end of a loop, not its inside."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        slot = cgutils.alloca_once_value(builder, args[0])
        lines = builder.bitcast(slot, V_I32.as_pointer())
        return builder.load(builder.gep(lines, [args[1]]))

    return i32x16(value, types.intp), generate


def _line_dot(dot: Any) -> Any:
    @intrinsic
    def dot_lines(typing: Any, acc: Any, u: Any, s: Any) -> Any:
        one, emit = dot._defn(typing, i32x16, i32x16, i32x16)

        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            sums, lines = _pieces(builder, args[0]), _pieces(builder, args[1])
            parts = [emit(context, builder, one, (a, b, args[2])) for a, b in zip(sums, lines, strict=True)]
            return _join(builder, parts)

        return acc(acc, acc, i32x16), generate

    return dot_lines


dot_lines_u8 = _line_dot(dot_u8s8)
"""dot_u8s8 of every piece of u with the same sixteen quads s."""

dot_lines_u7 = _line_dot(dot_u7s8)


def _nibbles(emit: Any) -> Any:
    @intrinsic
    def nibbles(typing: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            octets = vector(I8, 4 * args[0].type.count)
            return builder.bitcast(emit(builder, builder.bitcast(args[0], octets)), args[0].type)

        return value(value), generate

    return nibbles


low_nibbles = _nibbles(lambda builder, value: builder.and_(value, constant(value.type, 15)))
"""The lower four bits of every byte."""

high_nibbles = _nibbles(lambda builder, value: builder.lshr(value, constant(value.type, 4)))
"""The upper four, as a shift of bytes: one instruction where the CPU has one (GFNI, NEON), else two."""


_WIDER = [kind for count, kind in WIDE.items() if count > 1]
_operator(operator.add, dict.fromkeys(_WIDER, "add"))
_operator(operator.mul, dict.fromkeys(_WIDER, "mul"))
