"""AMX int8: eight tile registers of 16 rows of 64 bytes, and one instruction that multiplies two of them.

Tile numbers are literals: an instruction names its registers. The configuration belongs to the thread: a
kernel loads it before its first tile and releases it after its last, so that tiles never outlive the call
and a switch of threads need not save eight kilobytes of them. Vectors are AVX-512 VNNI's.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from kernels.simd.avx512vnni import DOT_BIAS, WIDE_TILE, dot_u7s8, dot_u8s8
from kernels.simd.ops import _require_contiguous, address
from kernels.simd.vectors import I8

TILES, ROWS, ROW_BYTES = 8, 16, 64
TILE_BYTES = ROWS * ROW_BYTES
"""Bytes of a tile: 16 activation rows by 64 inputs, 64 inputs of a weight block, or 16 x 16 int32."""

# Palette 1; from byte 16 the width in bytes of each tile (uint16), from byte 48 the rows of each.
_CONFIGURATION = bytes([1]) + bytes(15) + bytes([ROW_BYTES, 0]) * TILES + bytes(16) + bytes([ROWS]) * TILES


def _call(builder: Any, name: str, *args: Any) -> None:
    kind = ir.FunctionType(ir.VoidType(), [arg.type for arg in args])
    builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.x86.{name}"), args)


def _number(tile: Any) -> ir.Constant:
    if not isinstance(tile, types.IntegerLiteral) or not 0 <= tile.literal_value < TILES:
        raise TypeError(f"a tile is a literal number below {TILES}, got {tile}")
    return ir.Constant(I8, tile.literal_value)


@intrinsic
def tiles_open(typing: Any) -> Any:
    """Configure the eight tiles of this thread, all of full size."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        data = cgutils.create_constant_array(I8, list(_CONFIGURATION.ljust(64, b"\0")))
        place = cgutils.global_constant(builder, ".amx_configuration", data)
        _call(builder, "ldtilecfg", builder.bitcast(place, I8.as_pointer()))
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def tiles_close(typing: Any) -> Any:
    """Give the tiles back: their contents are gone, and the thread's state is small again."""

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _call(builder, "tilerelease")
        return context.get_dummy_value()

    return types.void(), generate


def _mover(name: str) -> Any:
    @intrinsic(prefer_literal=True)
    def move(typing: Any, tile: Any, array: Any, offset: Any) -> Any:
        _require_contiguous(array)
        number = _number(tile)

        def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            place = address(context, builder, sig.args[1], args[1], args[2], I8)
            _call(builder, name, number, place, ir.Constant(ir.IntType(64), ROW_BYTES))
            return context.get_dummy_value()

        return types.void(tile, array, types.intp), generate

    return move


tile_load = _mover("tileloadd64")
"""tile_load(tile, array, offset): 1024 contiguous bytes of an array become 16 rows of 64."""

tile_store = _mover("tilestored64")


@intrinsic(prefer_literal=True)
def tile_zero(typing: Any, tile: Any) -> Any:
    """All of a tile = 0, without a read of memory."""
    number = _number(tile)

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _call(builder, "tilezero", number)
        return context.get_dummy_value()

    return types.void(tile), generate


@intrinsic(prefer_literal=True)
def tile_dot(typing: Any, acc: Any, s: Any, u: Any) -> Any:
    """acc[i, n] += sum over j < 16, b < 4 of s[i, 4 j + b] * u[j, 4 n + b], wrapping int32 (tdpbsud).

    s: 16 activation rows of 64 signed bytes; u: 64 inputs of a weight block as they are stored, unsigned.
    """
    numbers = [_number(acc), _number(s), _number(u)]

    def generate(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _call(builder, "tdpbsud", *numbers)
        return context.get_dummy_value()

    return types.void(acc, s, u), generate


__all__ = [
    "DOT_BIAS",
    "WIDE_TILE",
    "dot_u7s8",
    "dot_u8s8",
    "tile_dot",
    "tile_load",
    "tile_store",
    "tile_zero",
    "tiles_close",
    "tiles_open",
]
