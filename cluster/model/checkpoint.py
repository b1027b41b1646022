"""A Hugging Face folder opened as a model: its spec, and its tensors one at a time as float32."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cluster.errors import BrokenCheckpoint, UnsupportedModel
from cluster.model.families import find_family
from cluster.model.family import Json, TensorNames
from cluster.model.shards import AGAIN, Float32, Shards, read_json
from cluster.model.spec import ModelSpec
from cluster.model.template import ChatTemplate
from cluster.model.tokenizer import Tokenizer


class Mlp(NamedTuple):
    """One SwiGLU: down(silu(gate x) * up x). gate, up: [width, hidden]; down: [hidden, width]."""

    gate: Float32
    up: Float32
    down: Float32


@dataclass(frozen=True)
class LayerTensors:
    """Everything of a layer but its routed experts; float32. H hidden, D head_dim, E experts.

    A sparse layer has `gate` (and `shared`, `shared_gate` where the family has a shared expert), a dense
    layer has `dense`; the rest is None.
    """

    attn_norm: Float32
    """[H]"""
    mlp_norm: Float32
    """[H]"""
    q: Float32
    """[heads * D, H]"""
    k: Float32
    """[kv_heads * D, H]"""
    v: Float32
    """[kv_heads * D, H]"""
    o: Float32
    """[H, heads * D]"""
    q_bias: Float32 | None
    """[heads * D]"""
    k_bias: Float32 | None
    v_bias: Float32 | None
    """[kv_heads * D]"""
    q_norm: Float32 | None
    """[D] if the spec's qk_norm is "head", [heads * D] if it is "full" """
    k_norm: Float32 | None
    """[D] or [kv_heads * D]"""
    gate: Float32 | None
    """[E, H]"""
    shared: Mlp | None
    shared_gate: Float32 | None
    """[H]"""
    dense: Mlp | None


class Checkpoint:
    """A checkpoint whose config is supported and whose tensors are all there in the right shape.

    `open` reads headers only; values are read, and checked for NaN and Inf, when asked for. Holds no file
    open. Every reader raises BrokenCheckpoint naming the file and what to do.
    """

    def __init__(
        self, folder: Path, config: Json, spec: ModelSpec, names: TensorNames, shards: Shards
    ) -> None:
        self.folder = folder
        self.name = folder.name
        self.config = config
        self.spec = spec
        self._names = names
        self._shards = shards
        self._moe = _moe_spelling(names, spec, shards)
        self._check_tensors()

    @staticmethod
    def open(path: str | os.PathLike[str]) -> Checkpoint:
        """Raises UnsupportedModel (by name) or BrokenCheckpoint before any weight is read."""
        folder = Path(path).resolve()
        config = read_json(folder / "config.json")
        generation_file = folder / "generation_config.json"
        generation = read_json(generation_file) if generation_file.exists() else None
        family = find_family(config)
        spec = family.read_spec(config, generation)
        return Checkpoint(folder, config, spec, family.names, Shards(folder))

    def embed(self) -> Float32:
        """[vocab, hidden]"""
        return self._shards.read(self._names.embed)

    def head(self) -> Float32:
        """[vocab, hidden]; the embedding where the two are tied."""
        return self.embed() if self.spec.tied_embeddings else self._shards.read(self._names.head)

    def final_norm(self) -> Float32:
        """[hidden]"""
        return self._shards.read(self._names.final_norm)

    def layer(self, layer: int) -> LayerTensors:
        names, spec, prefix = self._names, self.spec, self._prefix(layer)

        def read(name: str, wanted: bool = True) -> Float32 | None:
            return self._shards.read(prefix + name) if wanted else None

        def must(name: str) -> Float32:
            return self._shards.read(prefix + name)

        sparse, normed = spec.dense_widths[layer] == 0, spec.qk_norm != "none"
        shared = sparse and spec.shared_width > 0
        shared_gate = read(self._moe + names.shared_gate, shared)
        return LayerTensors(
            attn_norm=must(names.attn_norm),
            mlp_norm=must(names.mlp_norm),
            q=must(names.q),
            k=must(names.k),
            v=must(names.v),
            o=must(names.o),
            q_bias=read(names.q_bias, spec.qkv_bias),
            k_bias=read(names.k_bias, spec.qkv_bias),
            v_bias=read(names.v_bias, spec.qkv_bias),
            q_norm=read(names.q_norm, normed),
            k_norm=read(names.k_norm, normed),
            gate=read(self._moe + names.gate, sparse),
            shared=Mlp(*(must(self._moe + name) for name in _shared_names(names))) if shared else None,
            shared_gate=None if shared_gate is None else shared_gate.reshape(-1),
            dense=None if sparse else Mlp(*(must(name) for name in _dense_names(names))),
        )

    def expert(self, layer: int, index: int) -> Mlp:
        """One routed expert: gate, up [width, hidden], down [hidden, width]; reads no other's bytes."""
        names, prefix = self._names, self._prefix(layer) + self._moe
        if not 0 <= index < self.spec.experts or self.spec.dense_widths[layer]:
            raise IndexError(f"layer {layer} has no expert {index}")
        if self._fused(layer):
            gate_up = self._shards.read(prefix + names.fused_gate_up, index)
            down = self._shards.read(prefix + names.fused_down, index)
            return Mlp(gate_up[: self.spec.expert_width], gate_up[self.spec.expert_width :], down)
        parts = (names.expert_gate, names.expert_up, names.expert_down)
        return Mlp(*(self._shards.read(prefix + part.format(expert=index)) for part in parts))

    def tokenizer(self) -> Tokenizer | None:
        """None if there is no tokenizer.json. Raises BrokenCheckpoint if its ids exceed the vocabulary."""
        data = self.read_file("tokenizer.json")
        return None if data is None else Tokenizer.from_bytes(data, vocab=self.spec.vocab)

    def chat_template(self) -> ChatTemplate | None:
        """None if the model has none."""
        return ChatTemplate.from_files(
            tokenizer_config=self.read_file("tokenizer_config.json"),
            jinja=self.read_file("chat_template.jinja"),
            special_tokens_map=self.read_file("special_tokens_map.json"),
        )

    def read_file(self, name: str) -> bytes | None:
        """A small file of the folder as it is, None if it is not there."""
        file = self.folder / name
        return file.read_bytes() if file.is_file() else None

    def _prefix(self, layer: int) -> str:
        return self._names.layer.format(layer=layer)

    def _fused(self, layer: int) -> bool:
        return self._prefix(layer) + self._moe + self._names.fused_gate_up in self._shards

    def _check_tensors(self) -> None:
        expected = dict(self._expected())
        for name, shape in expected.items():
            if (found := self._shards.shape(name)) != shape:
                raise BrokenCheckpoint(
                    f"tensor {name} has shape {list(found)}, config.json asks for {list(shape)}; "
                    f"the two belong to different models, {AGAIN}"
                )
        spare = () if not self.spec.tied_embeddings else (self._names.head,)
        for name in self._shards:
            if name not in expected and not name.endswith((*self._names.ignored_suffixes, *spare)):
                kind = "bias" if name.endswith(".bias") else "tensor"
                raise UnsupportedModel(
                    f"{kind} {name} is not part of a {self.spec.family} model as we compute it"
                )

    def _expected(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Every tensor that the spec needs, with its shape."""
        names, spec = self._names, self.spec
        yield names.embed, (spec.vocab, spec.hidden)
        yield names.final_norm, (spec.hidden,)
        if not spec.tied_embeddings:
            yield names.head, (spec.vocab, spec.hidden)
        for layer in range(spec.layers):
            dense_width = spec.dense_widths[layer]
            mlp = _mlp_shapes(_dense_names(names), dense_width, spec) if dense_width else self._sparse(layer)
            for name, shape in (*_attention_shapes(names, spec), *mlp):
                yield self._prefix(layer) + name, shape

    def _sparse(self, layer: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        names, spec, moe = self._names, self.spec, self._moe
        yield moe + names.gate, (spec.experts, spec.hidden)
        if spec.shared_width:
            yield from _mlp_shapes([moe + name for name in _shared_names(names)], spec.shared_width, spec)
            yield moe + names.shared_gate, (1, spec.hidden)
        if self._fused(layer):
            yield moe + names.fused_gate_up, (spec.experts, 2 * spec.expert_width, spec.hidden)
            yield moe + names.fused_down, (spec.experts, spec.hidden, spec.expert_width)
            return
        for expert in range(spec.experts):
            parts = (names.expert_gate, names.expert_up, names.expert_down)
            filled = [moe + part.format(expert=expert) for part in parts]
            yield from _mlp_shapes(filled, spec.expert_width, spec)


def _moe_spelling(names: TensorNames, spec: ModelSpec, shards: Shards) -> str:
    prefix = names.layer.format(layer=spec.sparse_layers[0])
    used = [moe for moe in names.moe if prefix + moe + names.gate in shards]
    return used[0] if used else names.moe[0]


def _shared_names(names: TensorNames) -> tuple[str, str, str]:
    return names.shared_gate_proj, names.shared_up_proj, names.shared_down_proj


def _dense_names(names: TensorNames) -> tuple[str, str, str]:
    return names.dense_gate, names.dense_up, names.dense_down


def _mlp_shapes(
    names: tuple[str, ...] | list[str], width: int, spec: ModelSpec
) -> Iterator[tuple[str, tuple[int, ...]]]:
    gate, up, down = names
    yield gate, (width, spec.hidden)
    yield up, (width, spec.hidden)
    yield down, (spec.hidden, width)


def _attention_shapes(names: TensorNames, spec: ModelSpec) -> Iterator[tuple[str, tuple[int, ...]]]:
    q_rows, kv_rows = spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim
    yield names.attn_norm, (spec.hidden,)
    yield names.mlp_norm, (spec.hidden,)
    yield names.q, (q_rows, spec.hidden)
    yield names.k, (kv_rows, spec.hidden)
    yield names.v, (kv_rows, spec.hidden)
    yield names.o, (spec.hidden, q_rows)
    if spec.qkv_bias:
        yield names.q_bias, (q_rows,)
        yield names.k_bias, (kv_rows,)
        yield names.v_bias, (kv_rows,)
    if spec.qk_norm != "none":
        full = spec.qk_norm == "full"
        yield names.q_norm, (q_rows if full else spec.head_dim,)
        yield names.k_norm, (kv_rows if full else spec.head_dim,)
