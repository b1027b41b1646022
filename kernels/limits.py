# mypy: disable-error-code="no-untyped-def,no-untyped-call"
"""What the machine itself can do: reading memory, and byte dot products between registers.

`moemesh bench kernels` holds every kernel against these. They are no part of serving and are compiled when
they are first called.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kernels.jit import ISA, probe
from kernels.simd import dot_u8s8, load_i32x16, splat_i32, store_i32x16
from kernels.simd.amx import TILE_BYTES, tile_dot, tile_load, tile_store, tiles_close, tiles_open

LINE = 64
LOADS = 8
"""Lines in a turn of the loop: enough to hide the loop itself, few enough for 16 registers."""

PIECE = LOADS * LINE
"""Bytes of a work item of `read_bytes`."""

STREAMS = (1, 2, 4, 8)

CHAINS = 12
"""Independent accumulators of `dot_rate`: more than any CPU needs to hide the latency of a dot product."""

DOTS = CHAINS * 16 * 4
"""Multiply-adds in a turn of `dot_rate`."""

TILE_DOTS = 4 * 16 * 16 * 64
"""Multiply-adds in a turn of `tile_rate`."""


@probe
def read_bytes(w, streams, sink, begin, end):
    """Read pieces begin..end of w [bytes] uint8, in turn from `streams` (1, 2, 4 or 8) equal parts of them.

    sink [16] int32 receives something that depends on every byte, so that no read can be left out.
    """
    together = LOADS // streams
    span = (end - begin) // streams * PIECE
    step = together * LINE
    at = begin * PIECE
    p1 = at + 1 // together * span + 1 % together * LINE
    p2 = at + 2 // together * span + 2 % together * LINE
    p3 = at + 3 // together * span + 3 % together * LINE
    p4 = at + 4 // together * span + 4 % together * LINE
    p5 = at + 5 // together * span + 5 % together * LINE
    p6 = at + 6 // together * span + 6 % together * LINE
    p7 = at + 7 // together * span + 7 % together * LINE
    a = splat_i32(0)
    b = a
    c = a
    d = a
    for k in range(0, span, step):
        a = a + load_i32x16(w, at + k)
        b = b + load_i32x16(w, p1 + k)
        c = c + load_i32x16(w, p2 + k)
        d = d + load_i32x16(w, p3 + k)
        a = a + load_i32x16(w, p4 + k)
        b = b + load_i32x16(w, p5 + k)
        c = c + load_i32x16(w, p6 + k)
        d = d + load_i32x16(w, p7 + k)
    store_i32x16(sink, 0, a + b + c + d)


@probe
def dot_rate(values, begin, end):
    """Turns begin..end of DOTS byte multiply-adds between registers, each fed by the sums of others.

    values [CHAINS + 1, 16] int32: the starting sums and the signed operand; overwritten.
    """
    s = load_i32x16(values, CHAINS * LINE)
    a0 = load_i32x16(values, 0 * LINE)
    a1 = load_i32x16(values, 1 * LINE)
    a2 = load_i32x16(values, 2 * LINE)
    a3 = load_i32x16(values, 3 * LINE)
    a4 = load_i32x16(values, 4 * LINE)
    a5 = load_i32x16(values, 5 * LINE)
    a6 = load_i32x16(values, 6 * LINE)
    a7 = load_i32x16(values, 7 * LINE)
    a8 = load_i32x16(values, 8 * LINE)
    a9 = load_i32x16(values, 9 * LINE)
    a10 = load_i32x16(values, 10 * LINE)
    a11 = load_i32x16(values, 11 * LINE)
    for _ in range(begin, end):
        a0 = dot_u8s8(a0, a1, s)
        a1 = dot_u8s8(a1, a2, s)
        a2 = dot_u8s8(a2, a3, s)
        a3 = dot_u8s8(a3, a4, s)
        a4 = dot_u8s8(a4, a5, s)
        a5 = dot_u8s8(a5, a6, s)
        a6 = dot_u8s8(a6, a7, s)
        a7 = dot_u8s8(a7, a8, s)
        a8 = dot_u8s8(a8, a9, s)
        a9 = dot_u8s8(a9, a10, s)
        a10 = dot_u8s8(a10, a11, s)
        a11 = dot_u8s8(a11, a0, s)
    store_i32x16(values, 0, a0 + a1 + a2 + a3 + a4 + a5 + a6 + a7 + a8 + a9 + a10 + a11)


@probe
def tile_rate(values, begin, end):
    """Turns begin..end of TILE_DOTS byte multiply-adds between AMX's tile registers, four products in turn.

    values [8, 1024] uint8: what the tiles start with; overwritten.
    """
    tiles_open()
    tile_load(0, values, 0 * TILE_BYTES)
    tile_load(1, values, 1 * TILE_BYTES)
    tile_load(2, values, 2 * TILE_BYTES)
    tile_load(3, values, 3 * TILE_BYTES)
    tile_load(4, values, 4 * TILE_BYTES)
    tile_load(5, values, 5 * TILE_BYTES)
    tile_load(6, values, 6 * TILE_BYTES)
    tile_load(7, values, 7 * TILE_BYTES)
    for _ in range(begin, end):
        tile_dot(0, 4, 6)
        tile_dot(1, 4, 7)
        tile_dot(2, 5, 6)
        tile_dot(3, 5, 7)
    tile_store(0, values, 0 * TILE_BYTES)
    tile_store(1, values, 1 * TILE_BYTES)
    tile_store(2, values, 2 * TILE_BYTES)
    tile_store(3, values, 3 * TILE_BYTES)
    tiles_close()


RATE, RATE_DOTS = (tile_rate, TILE_DOTS) if ISA == "amx" else (dot_rate, DOTS)
"""The fastest of this process's instruction set, and its multiply-adds in a turn."""


def rate_values() -> npt.NDArray[Any]:
    """An array that RATE can start from."""
    return np.ones((8, TILE_BYTES), np.uint8) if ISA == "amx" else np.ones((CHAINS + 1, 16), np.int32)
