"""Qwen2-MoE (Qwen1.5-MoE): biases on q, k and v, and a shared expert scaled by a sigmoid gate."""

from __future__ import annotations

from cluster.errors import UnsupportedModel
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
    return ModelSpec(
        family=FAMILY.name,
        **fields,
        experts=experts,
        top_k=top_k,
        expert_width=reader.moe_count("moe_intermediate_size"),
        norm_topk=reader.flag("norm_topk_prob"),
        dense_widths=sparse_pattern(reader, fields["layers"]),
        windows=windows_of(reader, _sliding(reader, fields["layers"]), fields["context"]),
        qkv_bias=reader.flag("qkv_bias", default=True),
        shared_width=reader.moe_count("shared_expert_intermediate_size"),
    )


def _sliding(reader: Config, layers: int) -> list[bool]:
    """Which layers slide: `layer_types` if given, else every second one below `max_window_layers`."""
    slides = reader.flag("use_sliding_window")
    declared = reader.get("layer_types")
    if declared is None:
        last = reader.count("max_window_layers", default=28)
        return [slides and layer % 2 == 0 and layer < last for layer in range(layers)]
    sliding = [kind == "sliding_attention" for kind in declared]
    if len(sliding) != layers or (any(sliding) and not slides):
        raise UnsupportedModel(
            f"config.json: layer_types {declared!r} does not fit {layers} layers, use_sliding_window {slides}"
        )
    return sliding


FAMILY = Family("qwen2_moe", ("Qwen2MoeForCausalLM",), read_spec, TensorNames())
