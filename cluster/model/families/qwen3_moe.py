"""Qwen3-MoE: RMSNorm of every q and k head, head_dim of its own, dense layers in between."""

from __future__ import annotations

from cluster.model.config_json import Config, check_routing, sparse_pattern, trunk_fields, windows_of
from cluster.model.family import Family, Json, TensorNames
from cluster.model.spec import ModelSpec


def read_spec(config: Json, generation_config: Json | None = None) -> ModelSpec:
    reader = Config(config, generation_config)
    experts, top_k = (
        reader.moe_count("num_experts", "num_local_experts"),
        reader.moe_count("num_experts_per_tok"),
    )
    check_routing(experts, top_k)
    fields = trunk_fields(reader)
    # Unlike Qwen2-MoE, the window holds for every layer; transformers reads no max_window_layers here.
    slides = reader.flag("use_sliding_window") and reader.get("sliding_window") is not None
    return ModelSpec(
        family=FAMILY.name,
        **fields,
        experts=experts,
        top_k=top_k,
        expert_width=reader.moe_count("moe_intermediate_size"),
        norm_topk=reader.flag("norm_topk_prob"),
        dense_widths=sparse_pattern(reader, fields["layers"]),
        windows=windows_of(reader, [slides] * fields["layers"], fields["context"]),
        qk_norm="head",
    )


FAMILY = Family("qwen3_moe", ("Qwen3MoeForCausalLM",), read_spec, TensorNames())
