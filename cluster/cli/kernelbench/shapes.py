"""Real models' shapes, and random weights packed in them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cluster.compute.weights import Matrix
from kernels import layout

U8 = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Shape:
    """An expert of a model: `hidden` inputs and outputs, `width` inside; top_k experts a token."""

    name: str
    hidden: int
    width: int
    top_k: int

    @property
    def weights(self) -> int:
        return 3 * self.hidden * self.width


OLMOE = Shape("olmoe", 2048, 1024, 8)
QWEN3 = Shape("qwen3", 2048, 768, 8)
MIXTRAL = Shape("mixtral", 4096, 14336, 2)
DEEPSEEK = Shape("deepseek", 2048, 1408, 6)
SHAPES = (OLMOE, QWEN3, MIXTRAL, DEEPSEEK)

OLMOE_VOCABULARY = 50_304
KINDS = ("int8", "int4")


@dataclass(frozen=True)
class Blobs:
    """Experts one after the other in one buffer. size: bytes of each; down_offset: as in ExpertSource."""

    kind: str
    data: U8
    size: int
    down_offset: int

    @property
    def count(self) -> int:
        return len(self.data) // self.size


def aligned(size: int) -> U8:
    """[size] uint8 on a cache line, contents undefined."""
    raw = np.empty(size + layout.ALIGN, np.uint8)
    start = -raw.ctypes.data % layout.ALIGN
    return raw[start : start + size]


def packed(rng: np.random.Generator, kind: str, rows: int, width: int) -> U8:
    """A random matrix of `rows` x `width` in blocks of one kind, with its table."""
    code, blocks = layout.KINDS[kind], rows // layout.ROWS
    size, table = layout.block_bytes(code, width), layout.table_bytes(blocks)
    data = aligned(layout.matrix_bytes(code, blocks, width))
    data[:table] = 0
    data[: 8 * blocks].view(np.int64)[:] = table + np.arange(blocks) * size + code
    body = data[table:].reshape(blocks, size)
    body[:] = rng.integers(0, 256, body.shape, dtype=np.uint8)
    if code == layout.INT4:
        codes, multipliers = width * layout.ROWS // 2, layout.multiplier_bytes(width)
        body[:, codes : codes + multipliers] = rng.integers(
            1, layout.MAX_MULTIPLIER + 1, (blocks, multipliers)
        )
    scales = rng.uniform(1e-3, 1e-2, (blocks, layout.ROWS)).astype(np.float32)
    body[:, -4 * layout.ROWS :] = scales.view(np.uint8)
    return data


def random_matrix(rng: np.random.Generator, kind: str, rows: int, width: int) -> Matrix:
    return Matrix(packed(rng, kind, rows, width), 0, rows // layout.ROWS, width, floating=False)


def random_blobs(rng: np.random.Generator, kind: str, shape: Shape, least_bytes: int) -> Blobs:
    """One random expert, repeated until it fills `least_bytes` or more: no speed depends on the values."""
    parts = [
        packed(rng, kind, 2 * shape.width, shape.hidden),
        packed(rng, kind, shape.hidden, shape.width),
    ]
    size = sum(len(part) for part in parts)
    count = max(shape.top_k, -(-least_bytes // size))
    data = aligned(count * size)
    copies = data.reshape(count, size)
    copies[:, : len(parts[0])] = parts[0]
    copies[:, len(parts[0]) :] = parts[1]
    return Blobs(kind, data, size, len(parts[0]))
