"""From a library's blobs to the weights that the trunk computes with: views, nothing is copied."""

from __future__ import annotations

from cluster.compute.weights import FfnWeights, Matrix, TrunkLayer, TrunkWeights
from cluster.library import reader
from cluster.library.format import FLOAT_KINDS
from cluster.library.reader import Library, TrunkPart
from kernels import layout


def trunk_weights(library: Library) -> TrunkWeights:
    """Maps and checks every blob of the trunk. Raises CorruptBlob and LibraryError."""
    blobs = library.trunk()
    floating = blobs.kind in FLOAT_KINDS
    return TrunkWeights(
        embed=_matrix(blobs.embed, floating),
        head=_matrix(blobs.head, floating),
        final_norm=blobs.final_norm,
        layers=tuple(_layer(part, floating) for part in blobs.layers),
        floating=floating,
    )


def _layer(part: TrunkPart, floating: bool) -> TrunkLayer:
    optional = ("qkv_bias", "q_norm", "k_norm", "gate", "shared_gate")
    return TrunkLayer(
        attn_norm=part.array("attn_norm"),
        mlp_norm=part.array("mlp_norm"),
        qkv=_matrix(part.matrix("qkv"), floating),
        o=_matrix(part.matrix("o"), floating),
        shared=_ffn(part, "shared", floating),
        dense=_ffn(part, "dense", floating),
        **{name: part.array(name) for name in optional if name in part},
    )


def _matrix(matrix: reader.Matrix, floating: bool) -> Matrix:
    return Matrix(matrix.data, matrix.offset, matrix.rows // layout.ROWS, matrix.width, floating)


def _ffn(part: TrunkPart, name: str, floating: bool) -> FfnWeights | None:
    if f"{name}_gate_up" not in part:
        return None
    gate_up, down = part.matrix(f"{name}_gate_up"), part.matrix(f"{name}_down")
    return FfnWeights(part.data, gate_up.offset, part.down_offset(name), down.width, floating)
