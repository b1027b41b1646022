"""The one weight layout: blocks of 16 output rows, whatever the instruction set.

A *block* holds 16 rows of a matrix over the padded input width K (a multiple of 64):

    INT8   u8 [K/4][16][4], then 16 float32 row scales                      w = s * (u - 128)
    INT4   u8 [K/8][16][4], low nibble = k-quad 2j, high nibble = k-quad 2j+1,
           then u8 multipliers [K/64][16] padded to 64 bytes, then 16 float32 row scales
                                                                            w = s * m_g * (u - 8)
    BF16   u16 [K][16]
    F32    float32 [K][16]

A *matrix* is an int64 table [blocks], padded to 64 bytes, then its blocks. A table entry is the block's
byte offset from the matrix start (a multiple of 64) with the block's kind in the low bits, so that one
matrix may mix kinds. Nothing has to be converted after a read or a map.
"""

from __future__ import annotations

ROWS = 16
"""Output rows in a block: the lanes of a 512-bit register of int32, the columns of an AMX tile."""

GROUP = 64
"""Inputs that share one int4 multiplier; also the multiple that every input width is padded to."""

ALIGN = 64
KIND_MASK = 63

INT8, INT4, BF16, F32 = 0, 1, 2, 3
KINDS = {"int8": INT8, "int4": INT4, "bf16": BF16, "f32": F32}

MAX_MULTIPLIER = 15
"""Largest int4 group multiplier: m * 8 <= 128 and m * 7 <= 127 keep the expanded weight in a byte."""

PLANE = 128
PLANES_MAX = 127 * PLANE
"""Two-plane activations: a = 128 * hi + lo with |a| <= 16256, so that hi stays within +-127."""


def pad(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def block_bytes(kind: int, width: int) -> int:
    """Bytes of one block of 16 rows over `width` inputs (a multiple of 64)."""
    if kind == INT8:
        return width * ROWS + ROWS * 4
    if kind == INT4:
        return width * ROWS // 2 + multiplier_bytes(width) + ROWS * 4
    return width * ROWS * (2 if kind == BF16 else 4)


def multiplier_bytes(width: int) -> int:
    """Bytes of an int4 block's multipliers [width/64][16], padded to 64."""
    return pad(width // GROUP * ROWS, ALIGN)


def table_bytes(blocks: int) -> int:
    return pad(blocks * 8, ALIGN)


def matrix_bytes(kind: int, blocks: int, width: int) -> int:
    """Bytes of a matrix whose blocks are all of one kind."""
    return table_bytes(blocks) + blocks * block_bytes(kind, width)
