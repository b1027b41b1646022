"""Sixteen rows at a time: float32 weights to the bytes of one block of kernels/layout.py, and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cluster.library.quantise import bf16_bits, bf16_values, quantise_int4, quantise_int8
from kernels import layout

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

INT4_MAX_ERROR = 0.03
"""An int4 block becomes int8 where some row's mean relative squared error over its groups exceeds this.

Rows of the reference model: median 0.009, 1 in 1000 above 0.0175, largest 0.023. One group 32 times the
others: 0.042."""

Block = tuple[int, U8]
"""(kind, bytes) of 16 rows."""


@dataclass
class Tally:
    """What encoding cost. error and energy: sums of squares over real weights; the rest are counts."""

    weights: int = 0
    error: float = 0.0
    energy: float = 0.0
    worst: float = 0.0
    blocks: int = 0
    int8_fallback_blocks: int = 0
    groups: int = 0
    flattened_groups: int = 0

    @property
    def relative_error(self) -> float:
        return self.error / self.energy if self.energy else 0.0

    def add(self, other: Tally) -> None:
        self.weights += other.weights
        self.error += other.error
        self.energy += other.energy
        self.worst = max(self.worst, other.worst)
        self.blocks += other.blocks
        self.int8_fallback_blocks += other.int8_fallback_blocks
        self.groups += other.groups
        self.flattened_groups += other.flattened_groups


def _encode_int8(weights: F32) -> tuple[list[Block], Tally]:
    q = quantise_int8(weights)
    data = _int8_bytes(q.u, q.scale)
    return [(layout.INT8, block) for block in data], _tally(weights, q.error)


def _encode_int4(weights: F32) -> tuple[list[Block], Tally]:
    q = quantise_int4(weights)
    data = _int4_bytes(q.u, q.multiplier, q.scale)
    blocks = [(layout.INT4, block) for block in data]
    error = q.error.copy()
    poor = np.flatnonzero(q.group_error.reshape(-1, layout.ROWS).max(axis=1) > INT4_MAX_ERROR)
    for i in poor:
        rows = slice(i * layout.ROWS, (i + 1) * layout.ROWS)
        finer = quantise_int8(weights[rows])
        blocks[i] = (layout.INT8, _int8_bytes(finer.u, finer.scale)[0])
        error[rows] = finer.error
    tally = _tally(weights, error)
    tally.int8_fallback_blocks = poor.size
    tally.groups, tally.flattened_groups = q.multiplier.size, q.flattened
    return blocks, tally


def _encode_bf16(weights: F32) -> tuple[list[Block], Tally]:
    bits = bf16_bits(weights)
    lanes = np.ascontiguousarray(bits.reshape(-1, layout.ROWS, weights.shape[1]).transpose(0, 2, 1))
    unit = weights.astype(np.float64)
    lost = bf16_values(bits).astype(np.float64) - unit
    tally = Tally(error=float((lost * lost).sum()), energy=float((unit * unit).sum()))
    return [(layout.BF16, block.reshape(-1).view(np.uint8)) for block in lanes], tally


def _encode_f32(weights: F32) -> tuple[list[Block], Tally]:
    lanes = np.ascontiguousarray(weights.reshape(-1, layout.ROWS, weights.shape[1]).transpose(0, 2, 1))
    tally = _tally(weights, np.zeros(weights.shape[0], np.float64))
    return [(layout.F32, block.reshape(-1).view(np.uint8)) for block in lanes], tally


def _tally(weights: F32, error: npt.NDArray[np.float64]) -> Tally:
    """Row errors (relative) weighted by the rows' energies."""
    rows = weights.astype(np.float64)
    rows *= rows
    energy = rows.sum(axis=1)
    return Tally(error=float((error * energy).sum()), energy=float(energy.sum()))


def _int8_bytes(u: U8, scale: F32) -> U8:
    """u: [N, K], scale: [N] -> [N/16, bytes of a block]"""
    width = u.shape[1]
    out = np.empty((u.shape[0] // layout.ROWS, layout.block_bytes(layout.INT8, width)), np.uint8)
    out[:, : width * layout.ROWS] = _quads(u).reshape(out.shape[0], -1)
    out[:, width * layout.ROWS :] = _scale_bytes(scale)
    return out


def _int4_bytes(u: U8, multiplier: U8, scale: F32) -> U8:
    """u: [N, K] in 0..15, multiplier: [N, K/64], scale: [N] -> [N/16, bytes of a block]"""
    width = u.shape[1]
    out = np.zeros((u.shape[0] // layout.ROWS, layout.block_bytes(layout.INT4, width)), np.uint8)
    quads = _quads(u)
    nibbles = quads[:, 0::2] | (quads[:, 1::2] << np.uint8(4))
    groups = width // layout.GROUP
    multipliers = multiplier.reshape(-1, layout.ROWS, groups).transpose(0, 2, 1)
    at = width * layout.ROWS // 2
    out[:, :at] = nibbles.reshape(out.shape[0], -1)
    out[:, at : at + groups * layout.ROWS] = multipliers.reshape(out.shape[0], -1)
    out[:, -layout.ROWS * 4 :] = _scale_bytes(scale)
    return out


def _quads(u: U8) -> U8:
    """[N, K] -> [N/16, K/4, 16, 4]"""
    return np.ascontiguousarray(u.reshape(-1, layout.ROWS, u.shape[1] // 4, 4).transpose(0, 2, 1, 3))


def _scale_bytes(scale: F32) -> U8:
    return scale.astype("<f4").view(np.uint8).reshape(-1, layout.ROWS * 4)


def _decode_int8(block: U8, width: int) -> F32:
    u = block[: width * layout.ROWS].reshape(width // 4, layout.ROWS, 4).transpose(1, 0, 2)
    scale = block[-layout.ROWS * 4 :].view(np.float32)
    return scale[:, None] * (u.reshape(layout.ROWS, width).astype(np.float32) - np.float32(128))


def _decode_int4(block: U8, width: int) -> F32:
    groups, at = width // layout.GROUP, width * layout.ROWS // 2
    nibbles = block[:at].reshape(width // 8, layout.ROWS, 4)
    u = np.stack([nibbles & np.uint8(15), nibbles >> np.uint8(4)], axis=1)
    u = u.reshape(width // 4, layout.ROWS, 4).transpose(1, 0, 2).reshape(layout.ROWS, groups, layout.GROUP)
    m = block[at : at + groups * layout.ROWS].reshape(groups, layout.ROWS).T[:, :, None]
    integers = m.astype(np.float32) * (u.astype(np.float32) - np.float32(8))
    scale = block[-layout.ROWS * 4 :].view(np.float32)
    return scale[:, None] * integers.reshape(layout.ROWS, width)


def _decode_bf16(block: U8, width: int) -> F32:
    return bf16_values(block.view(np.uint16)).reshape(width, layout.ROWS).T


def _decode_f32(block: U8, width: int) -> F32:
    return block.view(np.float32).reshape(width, layout.ROWS).T


ENCODERS: dict[int, Callable[[F32], tuple[list[Block], Tally]]] = {
    layout.INT8: _encode_int8,
    layout.INT4: _encode_int4,
    layout.BF16: _encode_bf16,
    layout.F32: _encode_f32,
}
"""Kind -> [N, K] float32 (N a multiple of 16, K of 64) to its blocks in row order, and what that cost."""

DECODERS: dict[int, Callable[[U8, int], F32]] = {
    layout.INT8: _decode_int8,
    layout.INT4: _decode_int4,
    layout.BF16: _decode_bf16,
    layout.F32: _decode_f32,
}
"""Kind -> (bytes of a block, K) to its [16, K] float32 weights."""
