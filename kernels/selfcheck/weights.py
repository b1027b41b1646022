"""Packed weights (kernels/layout.py) out of drawn bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from kernels import layout
from kernels.layout import BF16, GROUP, INT4, INT8, ROWS
from kernels.selfcheck.draws import Draws, F

LARGEST_SCALE = 128


def matrix(draws: Draws, blocks: int, width: int, kinds: Sequence[int]) -> np.ndarray:
    """Bytes of a matrix of `blocks` blocks over `width` inputs; kinds repeat over the blocks. Read-only."""
    kinds = [kinds[i % len(kinds)] for i in range(blocks)]
    offsets = np.cumsum([layout.table_bytes(blocks), *(layout.block_bytes(kind, width) for kind in kinds)])
    data = np.zeros(offsets[-1], np.uint8)
    data[: 8 * blocks] = np.array([at | kind for at, kind in zip(offsets, kinds, strict=False)], "<i8").view(
        "u1"
    )
    for begin, end, kind in zip(offsets, offsets[1:], kinds, strict=False):
        _fill(draws, data[begin:end], kind, width)
    data.flags.writeable = False
    return data


@dataclass(frozen=True)
class Experts:
    """data: the blobs one after the other; base: [count] int64, where each begins; down_offset: see
    kernels/experts.py."""

    data: np.ndarray
    base: np.ndarray
    down_offset: int


def experts(draws: Draws, count: int, hidden: int, width: int, kinds: Sequence[int]) -> Experts:
    """`count` experts of padded widths; kinds repeat over the blocks of each matrix."""
    gap = np.full(192, 0xAA, np.uint8)  # no kernel may depend on what lies between two experts
    parts, base, down_offset, at = [gap], [], 0, gap.size
    for _ in range(count):
        gate_up = matrix(draws, 2 * width // ROWS, hidden, kinds)
        down = matrix(draws, hidden // ROWS, width, kinds)
        base.append(at)
        parts += [gate_up, down, gap]
        at += gate_up.size + down.size + gap.size
        down_offset = gate_up.size
    data = np.concatenate(parts)
    data.flags.writeable = False
    return Experts(data, np.array(base, np.int64), down_offset)


def bf16_bits(x: np.ndarray) -> np.ndarray:
    """Upper halves of float32 words: truncation, not the kernels' rounding."""
    return (x.view(np.uint32) >> 16).astype(np.uint16)


def _fill(draws: Draws, block: np.ndarray, kind: int, width: int) -> None:
    if kind in (INT8, INT4):
        weights = width * ROWS // (2 if kind == INT4 else 1)
        block[:weights] = draws.integers(0, 256, weights)
        if kind == INT4:
            groups = width // GROUP * ROWS
            block[weights : weights + groups] = draws.integers(1, layout.MAX_MULTIPLIER + 1, groups)
        scales = draws.integers(1, LARGEST_SCALE, ROWS) / 2**14
        block[-4 * ROWS :] = scales.astype("<f4").view(np.uint8)
        return
    values = (draws.integers(-(2**16), 2**16, width * ROWS) / 2**16).astype(F)
    block[:] = (bf16_bits(values) if kind == BF16 else values).view(np.uint8)
