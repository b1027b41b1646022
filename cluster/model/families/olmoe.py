"""OLMoE: RMSNorm over the whole q and k projection, then clipping of q, k and v, then RoPE."""

from __future__ import annotations

from cluster.errors import BrokenCheckpoint, UnsupportedModel
from cluster.model.config_json import REDO, Config, check_routing, trunk_fields, windows_of
from cluster.model.family import Family, Json, TensorNames
from cluster.model.spec import ModelSpec


def read_spec(config: Json, generation_config: Json | None = None) -> ModelSpec:
    reader = Config(config, generation_config)
    experts, top_k = (
        reader.moe_count("num_experts", "num_local_experts"),
        reader.moe_count("num_experts_per_tok"),
    )
    check_routing(experts, top_k)
    reader.refuse_if_set("sliding_window")
    fields = trunk_fields(reader)
    layers = fields["layers"]
    # The norms span the projections, and transformers sizes them from hidden: no head_dim of its own.
    if fields["heads"] * fields["head_dim"] != fields["hidden"]:
        raise UnsupportedModel("config.json: OLMoE needs hidden_size = num_attention_heads * head_dim")
    clip = 0.0 if reader.get("clip_qkv") is None else reader.number("clip_qkv")
    if reader.get("clip_qkv") is not None and clip <= 0:
        raise BrokenCheckpoint(f"config.json: clip_qkv is {clip}, which clips everything; {REDO}")
    return ModelSpec(
        family=FAMILY.name,
        **fields,
        experts=experts,
        top_k=top_k,
        expert_width=reader.moe_count("intermediate_size"),
        norm_topk=reader.flag("norm_topk_prob"),
        dense_widths=(0,) * layers,
        windows=windows_of(reader, [False] * layers, fields["context"]),
        qk_norm="full",
        clip_qkv=clip,
    )


FAMILY = Family("olmoe", ("OlmoeForCausalLM",), read_spec, TensorNames())
