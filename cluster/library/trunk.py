"""The trunk's blobs: which sections each has, and how a checkpoint's tensors become them.

Per layer: attn_norm, mlp_norm [Hp]; qkv, rows [heads*Dp | kv*Dp | kv*Dp], inputs Hp; o, rows Hp, inputs
pad64(heads*Dp); qkv_bias in the row order of qkv; q_norm, k_norm [Dp] or [heads*Dp], [kv*Dp]; in a sparse
layer gate [E16/16][Hp][16] and, where the model has one, the shared expert and its shared_gate [Hp]; in a
dense layer its MLP. Shared expert and MLP are laid out as an expert blob is, as two sections: shared_gate_up
(blocks alternating) then shared_down, dense_gate_up then dense_down; gate and up blocks that fell back to
int8 may lie behind the down blocks, in its section. Hp = padded hidden, Dp = padded head_dim; padding is
zero.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from cluster.library.blocks import Tally
from cluster.library.format import Section, SectionType
from cluster.library.matrix import assemble, assemble_expert, down_offset, encode
from cluster.model.checkpoint import LayerTensors, Mlp
from cluster.model.spec import ModelSpec
from kernels import layout

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
Shape = tuple[SectionType, tuple[int, ...]]


def layer_shapes(spec: ModelSpec, layer: int) -> dict[str, Shape]:
    """Every section of a layer's blob with its type and padded shape."""
    hidden, head = spec.padded_hidden, spec.padded_head
    rows = (spec.heads + 2 * spec.kv_heads) * head
    shapes: dict[str, Shape] = {
        "attn_norm": ("f32", (hidden,)),
        "mlp_norm": ("f32", (hidden,)),
        "qkv": ("blocks", (rows, hidden)),
        "o": ("blocks", (hidden, layout.pad(spec.heads * head, layout.GROUP))),
    }
    if spec.qkv_bias:
        shapes["qkv_bias"] = ("f32", (rows,))
    if spec.qk_norm != "none":
        full = spec.qk_norm == "full"
        shapes["q_norm"] = ("f32", (head * (spec.heads if full else 1),))
        shapes["k_norm"] = ("f32", (head * (spec.kv_heads if full else 1),))
    if width := spec.dense_widths[layer]:
        return shapes | _mlp_shapes("dense", hidden, width)
    shapes["gate"] = ("f32", (layout.pad(spec.experts, layout.ROWS) // layout.ROWS, hidden, layout.ROWS))
    if spec.shared_width:
        shapes |= _mlp_shapes("shared", hidden, spec.shared_width) | {"shared_gate": ("f32", (hidden,))}
    return shapes


def vocabulary_shape(spec: ModelSpec) -> Shape:
    return "blocks", (layout.pad(spec.vocab, layout.ROWS), spec.padded_hidden)


def final_shapes(spec: ModelSpec) -> dict[str, Shape]:
    return {"final_norm": ("f32", (spec.padded_hidden,))}


def _mlp_shapes(name: str, hidden: int, width: int) -> dict[str, Shape]:
    padded = layout.pad(width, layout.GROUP)
    return {f"{name}_gate_up": ("blocks", (2 * padded, hidden)), f"{name}_down": ("blocks", (hidden, padded))}


def embedding_kind(kind: int) -> int:
    """Of the embedding in a trunk of `kind`: an int4 trunk keeps it in int8.

    A decode step reads one row of it, so int4 would save no time; its error enters before every layer, and
    where embeddings are tied it is the head's too. docs/decisions/0013 has the perplexities.
    """
    return layout.INT8 if kind == layout.INT4 else kind


class TrunkPacker:
    """Makes the blobs of one trunk; `tally` grows with every matrix encoded.

    kind: of its matrices; the embedding's is `embedding_kind` of it. Gates and norms stay float32.
    """

    def __init__(self, spec: ModelSpec, kind: int) -> None:
        self.spec = spec
        self.kind = kind
        self.tally = Tally()

    def vocabulary(self, name: str, weights: F32) -> tuple[U8, dict[str, Section]]:
        """name: "embed" (the head too where they are tied) or "head"; weights: [V, H]"""
        kind = embedding_kind(self.kind) if name == "embed" else self.kind
        return _join({name: self._matrix(weights, kind)}, {name: vocabulary_shape(self.spec)})

    def final(self, norm: F32) -> tuple[U8, dict[str, Section]]:
        return _join({"final_norm": _bytes(_pad_to(norm, self.spec.padded_hidden))}, final_shapes(self.spec))

    def layer(self, index: int, tensors: LayerTensors) -> tuple[U8, dict[str, Section]]:
        shapes = layer_shapes(self.spec, index)
        parts = self._attention(tensors) | self._mixture(tensors)
        # In the order of `shapes`, not of the checkpoint: gate_up and down stay neighbours.
        return _join({name: parts[name] for name in shapes}, shapes)

    def _attention(self, t: LayerTensors) -> dict[str, U8]:
        spec, hidden, head = self.spec, self.spec.padded_hidden, self.spec.padded_head
        counts = (spec.heads, spec.kv_heads, spec.kv_heads)
        qkv = [_pad_heads(w, n, head) for w, n in zip((t.q, t.k, t.v), counts, strict=True)]
        columns = _pad_heads(np.ascontiguousarray(t.o.T), spec.heads, head).T
        parts = {
            "attn_norm": _bytes(_pad_to(t.attn_norm, hidden)),
            "mlp_norm": _bytes(_pad_to(t.mlp_norm, hidden)),
            "qkv": self._matrix(np.concatenate(qkv), self.kind),
            "o": self._matrix(np.ascontiguousarray(columns), self.kind, pad_rows=layout.GROUP),
        }
        if t.q_bias is not None and t.k_bias is not None and t.v_bias is not None:
            biases = zip((t.q_bias, t.k_bias, t.v_bias), counts, strict=True)
            parts["qkv_bias"] = _bytes(np.concatenate([_pad_heads(b, n, head) for b, n in biases]))
        if t.q_norm is not None and t.k_norm is not None:
            full = spec.qk_norm == "full"
            parts["q_norm"] = _bytes(_pad_heads(t.q_norm, spec.heads if full else 1, head))
            parts["k_norm"] = _bytes(_pad_heads(t.k_norm, spec.kv_heads if full else 1, head))
        return parts

    def _mixture(self, t: LayerTensors) -> dict[str, U8]:
        parts: dict[str, U8] = {}
        if t.gate is not None:
            parts["gate"] = _bytes(pack_gate(t.gate, self.spec.padded_hidden))
        if t.shared is not None:
            parts |= self._mlp("shared", t.shared)
        if t.shared_gate is not None:
            parts["shared_gate"] = _bytes(_pad_to(t.shared_gate.reshape(-1), self.spec.padded_hidden))
        if t.dense is not None:
            parts |= self._mlp("dense", t.dense)
        return parts

    def _matrix(self, weights: F32, kind: int, pad_rows: int = layout.ROWS) -> U8:
        encoded = encode(weights, kind, pad_rows)
        self.tally.add(encoded.tally)
        return assemble(encoded.blocks)

    def _mlp(self, name: str, mlp: Mlp) -> dict[str, U8]:
        data, tally = encode_expert(mlp, self.kind)
        self.tally.add(tally)
        middle = down_offset(self.kind, self.spec.padded_hidden, layout.pad(mlp[0].shape[0], layout.GROUP))
        return {f"{name}_gate_up": data[:middle], f"{name}_down": data[middle:]}


def encode_expert(mlp: Mlp, kind: int) -> tuple[U8, Tally]:
    """(gate [F, H], up [F, H], down [H, F]) float32 -> an expert blob and what it cost."""
    gate, up, down = (encode(weights, kind, pad_rows=layout.GROUP) for weights in mlp)
    tally = Tally()
    for part in (gate, up, down):
        tally.add(part.tally)
    return assemble_expert(gate, up, down, kind), tally


def pack_gate(gate: F32, hidden: int) -> F32:
    """[E, H] -> [E16/16, hidden, 16]: lanes are experts, zero for the padding ones."""
    experts = layout.pad(gate.shape[0], layout.ROWS)
    padded = np.zeros((experts, hidden), np.float32)
    padded[: gate.shape[0], : gate.shape[1]] = gate
    return np.ascontiguousarray(padded.reshape(-1, layout.ROWS, hidden).transpose(0, 2, 1))


def _pad_heads(values: F32, heads: int, head: int) -> F32:
    """[heads * D, ...] -> [heads * head, ...], each head's rows zero-padded."""
    each = values.reshape(heads, -1, *values.shape[1:])
    out = np.zeros((heads, head, *values.shape[1:]), np.float32)
    out[:, : each.shape[1]] = each
    return out.reshape(heads * head, *values.shape[1:])


def _pad_to(values: F32, size: int) -> F32:
    out = np.zeros(size, np.float32)
    out[: values.size] = values
    return out


def _bytes(values: F32) -> U8:
    return np.ascontiguousarray(values, "<f4").reshape(-1).view(np.uint8)


def _join(parts: Mapping[str, U8], shapes: Mapping[str, Shape]) -> tuple[U8, dict[str, Section]]:
    """Lay parts one behind the other, each on a multiple of 64."""
    sections, cursor = {}, 0
    for name, data in parts.items():
        dtype, shape = shapes[name]
        sections[name] = Section(cursor, data.size, dtype, shape)
        cursor += layout.pad(data.size, layout.ALIGN)
    blob = np.zeros(cursor, np.uint8)
    for name, data in parts.items():
        blob[sections[name].offset :][: data.size] = data
    return blob, sections
