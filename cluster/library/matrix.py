"""Float matrices to blocks behind a table, and back.

A matrix is padded with zeros to 16 rows and 64 inputs, encoded block by block (`encode`), and its blocks are
laid out behind their table (`assemble`, `assemble_expert`). `decode` is the exact inverse of the layout: it
gives the float32 weights that the kernels compute with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from cluster.errors import LibraryError
from cluster.library.blocks import DECODERS, ENCODERS, Block, Tally
from kernels import layout

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

CHUNK_ROWS = 1024
"""Rows encoded at once, so that the integers of a vocabulary-sized matrix never exist as a whole."""


@dataclass
class Encoded:
    """Blocks of one matrix, 16 rows each in row order. rows, width: padded."""

    rows: int
    width: int
    blocks: list[Block]
    tally: Tally = field(default_factory=Tally)


def encode(weights: F32, kind: int, pad_rows: int = layout.ROWS) -> Encoded:
    """weights: [N, K] finite float32 -> blocks of `kind` over N padded to `pad_rows` and K padded to 64.

    INT4 falls back to INT8 block by block (INT4_MAX_ERROR). tally.worst is the error of this whole matrix.
    """
    rows, width = layout.pad(weights.shape[0], pad_rows), layout.pad(weights.shape[1], layout.GROUP)
    encoded = Encoded(rows, width, [])
    for start in range(0, rows, CHUNK_ROWS):
        part = _padded(weights[start : start + CHUNK_ROWS], min(CHUNK_ROWS, rows - start), width)
        blocks, tally = ENCODERS[kind](part)
        encoded.blocks += blocks
        encoded.tally.add(tally)
    encoded.tally.weights = weights.size
    encoded.tally.blocks = len(encoded.blocks)
    encoded.tally.worst = encoded.tally.relative_error
    return encoded


def assemble(blocks: Sequence[Block]) -> U8:
    """One matrix: its table, then its blocks. -> [bytes] uint8, a multiple of 64"""
    out = np.zeros(layout.table_bytes(len(blocks)) + sum(data.size for _, data in blocks), np.uint8)
    _place(out, 0, out.size, blocks)
    return out


def down_offset(kind: int, hidden: int, width: int) -> int:
    """Where the down matrix starts in every expert blob of a variant. hidden, width: padded."""
    return layout.matrix_bytes(kind, 2 * width // layout.ROWS, hidden)


def assemble_expert(gate: Encoded, up: Encoded, down: Encoded, kind: int) -> U8:
    """An expert blob: gate and up blocks alternating, the down matrix at `down_offset`.

    Gate and up blocks that fell back to a larger kind do not all fit before the down matrix, whose place is
    the same in every blob of a variant: the rest follow it, and the table says where.
    """
    pairs = [block for pair in zip(gate.blocks, up.blocks, strict=True) for block in pair]
    middle = down_offset(kind, gate.width, gate.rows)
    down_bytes = layout.table_bytes(len(down.blocks)) + sum(data.size for _, data in down.blocks)
    spilled = sum(pairs[i][1].size for i in _spilled(pairs, middle))
    out = np.zeros(middle + down_bytes + spilled, np.uint8)
    _place(out, 0, middle, pairs, spill=middle + down_bytes)
    _place(out, middle, out.size, down.blocks)
    return out


def decode(data: U8, offset: int, rows: int, width: int) -> F32:
    """The matrix at `offset` of `data` -> [rows, width] float32 (padded sizes), exactly as stored."""
    check_table(data, offset, rows, width)
    out = np.empty((rows, width), np.float32)
    for i, entry in enumerate(_table(data, offset, rows)):
        kind, start = int(entry) & layout.KIND_MASK, offset + (int(entry) & ~layout.KIND_MASK)
        block = data[start : start + layout.block_bytes(kind, width)]
        out[i * layout.ROWS : (i + 1) * layout.ROWS] = DECODERS[kind](block, width)
    return out


def decode_gate_up(data: U8, offset: int, rows: int, width: int) -> tuple[F32, F32]:
    """The alternating matrix at `offset` -> (gate, up), each [rows, width] float32."""
    both = decode(data, offset, 2 * rows, width).reshape(-1, 2, layout.ROWS, width)
    return both[:, 0].reshape(rows, width), both[:, 1].reshape(rows, width)


def check_table(data: U8, offset: int, rows: int, width: int) -> None:
    """Raises LibraryError unless every block of the matrix is of a known kind and lies within `data`.

    Kernels trust the table: an entry that points outside would be read outside.
    """
    table_end = offset + layout.table_bytes(rows // layout.ROWS)
    if offset % layout.ALIGN or table_end > data.size:
        raise LibraryError(
            f"a matrix of {rows} rows at byte {offset} does not fit its blob; pack the model again"
        )
    table = _table(data, offset, rows)
    kinds, starts = table & layout.KIND_MASK, (table & ~np.int64(layout.KIND_MASK)) + offset
    sizes = np.array([layout.block_bytes(kind, width) for kind in sorted(layout.KINDS.values())], np.int64)
    known = kinds < sizes.size
    ends = starts + sizes[np.where(known, kinds, 0)]
    if not (known.all() and (starts >= table_end).all() and (ends <= data.size).all()):
        raise LibraryError(f"the block table at byte {offset} points outside its blob; pack the model again")


def _table(data: U8, offset: int, rows: int) -> npt.NDArray[np.int64]:
    return data[offset : offset + rows // layout.ROWS * 8].view(np.int64)


def _spilled(blocks: Sequence[Block], limit: int) -> list[int]:
    """First fit in order: the blocks that do not fit below `limit`."""
    cursor, rest = layout.table_bytes(len(blocks)), []
    for i, (_, data) in enumerate(blocks):
        if cursor + data.size <= limit:
            cursor += data.size
        else:
            rest.append(i)
    return rest


def _place(out: U8, start: int, end: int, blocks: Sequence[Block], spill: int = 0) -> None:
    """Write a matrix at `start`: blocks below `end` while they fit, the rest from `spill` on."""
    table = out[start : start + len(blocks) * 8].view(np.int64)
    cursor = start + layout.table_bytes(len(blocks))
    rest = set(_spilled(blocks, end - start))
    for i, (kind, data) in enumerate(blocks):
        at = spill if i in rest else cursor
        table[i] = (at - start) | kind
        out[at : at + data.size] = data
        if i in rest:
            spill += data.size
        else:
            cursor += data.size


def _padded(weights: F32, rows: int, width: int) -> F32:
    if weights.shape == (rows, width):
        return np.ascontiguousarray(weights, np.float32)
    out = np.zeros((rows, width), np.float32)
    out[: weights.shape[0], : weights.shape[1]] = weights
    return out
