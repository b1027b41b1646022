"""Random weights packed into blocks in plain numpy: a second writer of the layout, independent of `pack`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

INT8, INT4, BF16, F32 = 0, 1, 2, 3


def pad(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def padded_bytes(data: bytes) -> bytes:
    return data + bytes(pad(len(data), 64) - len(data))


@dataclass(frozen=True)
class Matrix:
    """A packed matrix and what it means: row n, input k is `scales[n] * levels[n, k]` or `floats[n, k]`."""

    blob: NDArray[np.uint8]
    kinds: tuple[int, ...]
    levels: NDArray[np.int64]
    scales: NDArray[np.float32]
    floats: NDArray[np.float32]

    @property
    def blocks(self) -> int:
        return len(self.kinds)

    @property
    def width(self) -> int:
        return self.levels.shape[1]

    def kind_of_row(self) -> NDArray[np.int64]:
        return np.repeat(np.array(self.kinds, np.int64), 16)


def quads(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[16, K] -> [K/4, 16, 4], the order of an int8 block."""
    return np.ascontiguousarray(values.reshape(16, -1, 4).transpose(1, 0, 2))


def int8_block(stored: NDArray[np.uint8], scales: NDArray[np.float32]) -> bytes:
    return quads(stored).tobytes() + scales.astype("<f4").tobytes()


def int4_block(
    nibbles: NDArray[np.uint8], multipliers: NDArray[np.uint8], scales: NDArray[np.float32]
) -> bytes:
    """nibbles [16, K] in 0..15, multipliers [16, K/64] in 1..15."""
    q = quads(nibbles)
    packed = q[0::2] | (q[1::2] << 4)
    return packed.tobytes() + padded_bytes(multipliers.T.tobytes()) + scales.astype("<f4").tobytes()


def bf16_bits(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Truncation: good enough to draw random bf16 weights."""
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def bf16_values(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def join_blocks(blocks: Sequence[bytes], kinds: Sequence[int]) -> NDArray[np.uint8]:
    """The matrix: its table of (offset | kind), then its blocks. Read-only, like a mapped file."""
    offset = pad(8 * len(blocks), 64)
    table = []
    for block, kind in zip(blocks, kinds, strict=True):
        assert len(block) % 64 == 0
        table.append(offset | kind)
        offset += len(block)
    return np.frombuffer(padded_bytes(np.array(table, "<i8").tobytes()) + b"".join(blocks), np.uint8)


def random_block(
    rng: np.random.Generator, kind: int, rows: int, columns: int, fill: str
) -> tuple[bytes, NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]:
    """(bytes, levels, scales, floats) of a block with `rows` <= 16 real rows and `columns` real inputs."""
    width = pad(columns, 64)
    real = (np.arange(16)[:, None] < rows) & (np.arange(width)[None, :] < columns)
    scales = np.where(np.arange(16) < rows, rng.uniform(1e-3, 1e-2, 16), 0).astype(np.float32)
    nothing = np.zeros((16, width), np.int64)
    if kind == INT8:
        drawn = {"random": rng.integers(0, 256, (16, width)), "top": 255, "bottom": 0}[fill]
        stored = np.where(real, drawn, 128).astype(np.uint8)
        levels = stored.astype(np.int64) - 128
        return int8_block(stored, scales), levels, scales, levels * np.float32(0)
    if kind == INT4:
        drawn = {"random": rng.integers(0, 16, (16, width)), "top": 15, "bottom": 0}[fill]
        nibbles = np.where(real, drawn, 8).astype(np.uint8)
        low = 1 if fill == "random" else 15
        multipliers = rng.integers(low, 16, (16, width // 64)).astype(np.uint8)
        levels = (nibbles.astype(np.int64) - 8) * np.repeat(multipliers, 64, axis=1)
        return int4_block(nibbles, multipliers, scales), levels, scales, levels * np.float32(0)
    floats = np.where(real, rng.standard_normal((16, width)), 0).astype(np.float32)
    if kind == BF16:
        bits = bf16_bits(floats)
        data = np.ascontiguousarray(bits.T).astype("<u2").tobytes()
        return data, nothing, np.ones(16, np.float32), bf16_values(bits)
    return np.ascontiguousarray(floats.T).astype("<f4").tobytes(), nothing, np.ones(16, np.float32), floats


def random_matrix(
    rng: np.random.Generator, rows: int, columns: int, kinds: Sequence[int], fill: str = "random"
) -> Matrix:
    """A matrix of rows × columns, zero-padded to blocks; `kinds` repeats over its blocks.

    fill: "random", or every weight at the "top" or "bottom" of its range.
    """
    count = -(-rows // 16)
    kinds = [kinds[i % len(kinds)] for i in range(count)]
    parts = [random_block(rng, kind, min(16, rows - 16 * i), columns, fill) for i, kind in enumerate(kinds)]
    return Matrix(
        blob=join_blocks([p[0] for p in parts], kinds),
        kinds=tuple(kinds),
        levels=np.concatenate([p[1] for p in parts]),
        scales=np.concatenate([p[2] for p in parts]),
        floats=np.concatenate([p[3] for p in parts]).astype(np.float32),
    )


@dataclass(frozen=True)
class Experts:
    """Several experts' blobs one after the other, with a gap that no kernel may depend on."""

    blob: NDArray[np.uint8]
    base: NDArray[np.int64]
    down_offset: int
    gate_up: tuple[Matrix, ...]
    down: tuple[Matrix, ...]


def random_experts(
    rng: np.random.Generator, count: int, hidden: int, width: int, kinds: Sequence[int], fill: str = "random"
) -> Experts:
    """`count` experts; kinds repeat over the blocks of each matrix (gate and up may differ)."""
    gate_up = tuple(random_matrix(rng, 2 * pad(width, 64), hidden, kinds, fill) for _ in range(count))
    down = tuple(random_matrix(rng, pad(hidden, 64), width, kinds, fill) for _ in range(count))
    gap = bytes(64 * 3)
    base, data = [], gap
    for first, second in zip(gate_up, down, strict=True):
        base.append(len(data))
        data += first.blob.tobytes() + second.blob.tobytes() + gap
    return Experts(
        blob=np.frombuffer(data, np.uint8),
        base=np.array(base, np.int64),
        down_offset=gate_up[0].blob.size,
        gate_up=gate_up,
        down=down,
    )
