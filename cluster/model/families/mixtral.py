"""Mixtral: plain attention, weights of the chosen experts always renormalised, w1/w3/w2 = gate/up/down."""

from __future__ import annotations

from cluster.model.config_json import Config, check_routing, trunk_fields, windows_of
from cluster.model.family import Family, Json, TensorNames
from cluster.model.spec import ModelSpec


def read_spec(config: Json, generation_config: Json | None = None) -> ModelSpec:
    reader = Config(config, generation_config)
    experts, top_k = (
        reader.moe_count("num_local_experts", "num_experts"),
        reader.moe_count("num_experts_per_tok"),
    )
    check_routing(experts, top_k)
    fields = trunk_fields(reader, default_theta=1_000_000.0)
    layers = fields["layers"]
    slides = reader.get("sliding_window") is not None
    return ModelSpec(
        family=FAMILY.name,
        **fields,
        experts=experts,
        top_k=top_k,
        expert_width=reader.moe_count("intermediate_size"),
        norm_topk=True,
        dense_widths=(0,) * layers,
        windows=windows_of(reader, [slides] * layers, fields["context"]),
    )


FAMILY = Family(
    "mixtral",
    ("MixtralForCausalLM",),
    read_spec,
    TensorNames(
        # Published checkpoints say block_sparse_moe; transformers 5 calls the block mlp in memory.
        moe=("block_sparse_moe.", "mlp."),
        expert_gate="experts.{expert}.w1.weight",
        expert_up="experts.{expert}.w3.weight",
        expert_down="experts.{expert}.w2.weight",
    ),
)
