"""What a model family is: the architectures it answers to, how to read its config, where its tensors live."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cluster.model.spec import ModelSpec

Json = dict[str, Any]


@dataclass(frozen=True)
class TensorNames:
    """Names of the tensors of one family; the defaults are those that most families share.

    Names of layer tensors are relative to `layer`, those of a sparse layer's MLP to its `moe` block, which
    families have spelled in more than one way: the first spelling that the checkpoint uses is taken.
    `{layer}` and `{expert}` are filled in.

    Matrices are [outputs, inputs]. Routed experts come one by one (`expert_*`) or fused over experts, as
    transformers 5 keeps them: `fused_gate_up` [experts, 2 * width, hidden] with the gate's rows first,
    `fused_down` [experts, hidden, width].
    """

    embed: str = "model.embed_tokens.weight"
    head: str = "lm_head.weight"
    final_norm: str = "model.norm.weight"
    layer: str = "model.layers.{layer}."

    attn_norm: str = "input_layernorm.weight"
    mlp_norm: str = "post_attention_layernorm.weight"
    q: str = "self_attn.q_proj.weight"
    k: str = "self_attn.k_proj.weight"
    v: str = "self_attn.v_proj.weight"
    o: str = "self_attn.o_proj.weight"
    q_bias: str = "self_attn.q_proj.bias"
    k_bias: str = "self_attn.k_proj.bias"
    v_bias: str = "self_attn.v_proj.bias"
    q_norm: str = "self_attn.q_norm.weight"
    k_norm: str = "self_attn.k_norm.weight"
    dense_gate: str = "mlp.gate_proj.weight"
    dense_up: str = "mlp.up_proj.weight"
    dense_down: str = "mlp.down_proj.weight"

    moe: tuple[str, ...] = ("mlp.",)
    gate: str = "gate.weight"
    expert_gate: str = "experts.{expert}.gate_proj.weight"
    expert_up: str = "experts.{expert}.up_proj.weight"
    expert_down: str = "experts.{expert}.down_proj.weight"
    fused_gate_up: str = "experts.gate_up_proj"
    fused_down: str = "experts.down_proj"
    shared_gate_proj: str = "shared_expert.gate_proj.weight"
    shared_up_proj: str = "shared_expert.up_proj.weight"
    shared_down_proj: str = "shared_expert.down_proj.weight"
    shared_gate: str = "shared_expert_gate.weight"

    ignored_suffixes: tuple[str, ...] = ("rotary_emb.inv_freq",)
    """Tensors that old checkpoints carry and that hold no weights."""


@dataclass(frozen=True)
class Family:
    """One file of cluster/model/families, which binds one of these to the name FAMILY.

    name: the family's own name, stored in the ModelSpec; Hugging Face's `model_type`.
    architectures: values of `architectures` in config.json that this family serves.
    read_spec: (config.json, generation_config.json or None) -> ModelSpec; raises UnsupportedModel by name
        for anything it does not compute, BrokenCheckpoint for a config that contradicts itself.
    """

    name: str
    architectures: tuple[str, ...]
    read_spec: Callable[[Json, Json | None], ModelSpec]
    names: TensorNames
