# mypy: disable-error-code="no-untyped-def,no-untyped-call"
"""Finding blocks, multipliers and scales in a packed matrix (kernels/layout.py), for use inside kernels."""

from __future__ import annotations

from kernels.jit import inline
from kernels.layout import ALIGN, GROUP, INT8, KIND_MASK, ROWS
from kernels.simd import load_f32x16, load_i64


@inline
def block_at(w, base, block):
    """(byte offset, kind) of a block of the matrix that starts at byte `base`."""
    entry = load_i64(w, base + 8 * block)
    kind = entry & KIND_MASK
    return base + entry - kind, kind


@inline
def run_at(w, base, block, left, count):
    """(kind, offset, step) of the `count` >= 2 blocks from `block` on, `step` bytes from one to the next.

    step is 0 where they are more than `left`, of different kinds or not equally spaced: then kind and offset
    are those of `block` alone.
    """
    entry = load_i64(w, base + 8 * block)
    kind = entry & KIND_MASK
    step = 0
    if count <= left:
        step = load_i64(w, base + 8 * block + 8) - entry
        if step & KIND_MASK:
            step = 0
        for i in range(2, count):
            if load_i64(w, base + 8 * (block + i)) != entry + i * step:
                step = 0
    return kind, base + entry - kind, step


@inline
def multipliers_at(at, width):
    """Byte offset of an int4 block's multipliers [width/64][16]."""
    return at + width * (ROWS // 2)


@inline
def scales_at(kind, at, width):
    """Byte offset of the 16 float32 row scales at the end of an int8 or int4 block."""
    if kind == INT8:
        return at + width * ROWS
    return multipliers_at(at, width) + ((width // GROUP * ROWS + ALIGN - 1) & -ALIGN)


@inline
def row_scales(w, kind, at, width):
    return load_f32x16(w, scales_at(kind, at, width))
