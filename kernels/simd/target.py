"""The byte dot products, whose instructions differ by CPU; chosen once a process.

Every instruction set is a file of its name in this folder, with

    dot_u8s8(acc, u, s)   acc[i] + Σ_{j<4} (u[4i+j] - DOT_BIAS) s[4i+j], any unsigned u
    dot_u7s8(acc, u, s)   acc[i] + Σ_{j<4} u[4i+j] s[4i+j], u <= 127: the cheaper one for nibbles
    DOT_BIAS              what dot_u8s8 takes off u: 128 where the instruction wants signed bytes, else 0

    WIDE_TILE             whether the registers hold eight i32x16 sums and their operands

over i32x16, in wrapping int32; s are signed bytes in ±127. Both are exact: where the zero point of the
weights is taken off, in the instruction or at the start of the sum, changes no bit.
"""

from __future__ import annotations

from importlib import import_module

from kernels.jit import ISA

_SET = import_module(f"kernels.simd.{ISA}")

DOT_BIAS: int = _SET.DOT_BIAS
WIDE_TILE: bool = _SET.WIDE_TILE
dot_u8s8 = _SET.dot_u8s8
dot_u7s8 = _SET.dot_u7s8

__all__ = ["DOT_BIAS", "WIDE_TILE", "dot_u7s8", "dot_u8s8"]
