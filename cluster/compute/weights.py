"""Weights as the kernels want them: one byte array, and where in it each matrix begins."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cluster.config import KvType
from kernels import layout

KV_DTYPES: dict[KvType, type[np.generic]] = {KvType.bf16: np.uint16, KvType.int8: np.int8}


def kv_dtype(floating: bool, kv: KvType = KvType.bf16) -> type[np.generic]:
    """Of stored K and V: float32 behind a float trunk (the reference path) whatever `kv` says, else bf16 bits
    in uint16, or int8, which has a float32 scale for every token and head beside it."""
    return np.float32 if floating else KV_DTYPES[kv]


def kv_name(dtype: npt.DTypeLike) -> str:
    """What people call a type of `kv_dtype`: f32, bf16 or int8."""
    return {"float32": "f32", "uint16": "bf16", "int8": "int8"}[np.dtype(dtype).name]


@dataclass(frozen=True)
class Matrix:
    """A packed matrix (kernels/layout.py).

    data: the blob, [bytes] uint8, read-only; base: byte offset of the matrix's block table;
    blocks: blocks of 16 output rows; width: padded inputs; floating: bf16 or f32 kinds, which take
    float32 activations instead of int8.
    """

    data: np.ndarray
    base: int
    blocks: int
    width: int
    floating: bool

    @property
    def rows(self) -> int:
        return self.blocks * layout.ROWS


@dataclass(frozen=True)
class FfnWeights:
    """A SwiGLU network in the form of an expert blob: gate and up blocks alternate, then the down matrix.

    width: padded inner width; down_offset: bytes from `base` to the down matrix.
    """

    data: np.ndarray
    base: int
    down_offset: int
    width: int
    floating: bool


@dataclass(frozen=True)
class TrunkLayer:
    """One layer less its routed experts. Float arrays are float32 and padded with zeros.

    attn_norm, mlp_norm: [Hp]; qkv_bias: [qkv rows]; q_norm, k_norm: [Dp] per head or [heads * Dp] and
    [kv_heads * Dp]; gate: [E16 / 16, Hp, 16]; shared_gate: [Hp].
    """

    attn_norm: np.ndarray
    mlp_norm: np.ndarray
    qkv: Matrix
    o: Matrix
    qkv_bias: np.ndarray | None = None
    q_norm: np.ndarray | None = None
    k_norm: np.ndarray | None = None
    gate: np.ndarray | None = None
    shared: FfnWeights | None = None
    shared_gate: np.ndarray | None = None
    dense: FfnWeights | None = None


@dataclass(frozen=True)
class TrunkWeights:
    """embed and head: [vocab padded to 16, Hp]; the same matrix where embeddings are tied."""

    embed: Matrix
    head: Matrix
    final_norm: np.ndarray
    layers: tuple[TrunkLayer, ...]
    floating: bool
