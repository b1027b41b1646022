"""config.json to ModelSpec: both spellings of everything, and refusals by name."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from cluster.errors import BrokenCheckpoint, UnsupportedModel
from cluster.model.families import families, family_named, find_family
from cluster.model.spec import ModelSpec
from support.checkpoints import CASES, case

QWEN3, QWEN2, OLMOE, MIXTRAL = "qwen3-tied-gqa", "qwen2-shared", "olmoe-clip", "mixtral-old-window"


def read(config: dict[str, Any], generation: dict[str, Any] | None = None) -> ModelSpec:
    return find_family(config).read_spec(config, generation)


def changed(name: str, **values: Any) -> dict[str, Any]:
    return {**case(name).config, **values}


def without(name: str, *keys: str) -> dict[str, Any]:
    return {key: value for key, value in case(name).config.items() if key not in keys}


def test_every_file_of_the_folder_is_a_family() -> None:
    assert [family.name for family in families()] == ["mixtral", "olmoe", "qwen2_moe", "qwen3_moe"]
    assert family_named("olmoe").architectures == ("OlmoeForCausalLM",)
    with pytest.raises(UnsupportedModel, match="llama"):
        family_named("llama")


@pytest.mark.parametrize("tiny", CASES, ids=lambda tiny: tiny.name)
def test_spec_survives_its_dict(tiny: Any) -> None:
    spec = read(tiny.config)
    assert ModelSpec.from_dict(spec.to_dict()) == spec
    assert spec.family == tiny.config["model_type"]


def test_qwen3() -> None:
    spec = read(case("qwen3-dense-between").config)
    assert (spec.dense_widths, spec.sparse_layers) == ((0, 56, 0, 0), (0, 2, 3))
    assert (spec.qk_norm, spec.qkv_bias, spec.head_dim, spec.norm_topk) == ("head", False, 20, False)
    assert read(case("qwen3-window").config).dense_widths == (40, 0, 40, 0)  # decoder_sparse_step 2
    assert read(case("qwen3-window").config).windows == (24, 24, 24, 24)


def test_qwen2() -> None:
    spec = read(case(QWEN2).config)
    assert (spec.qkv_bias, spec.shared_width, spec.qk_norm, spec.windows) == (True, 40, "none", (0, 0, 0))
    spec = read(case("qwen2-layer-windows").config)
    assert (spec.windows, spec.dense_widths) == ((20, 0, 20, 0), (0, 0, 40, 0))


def test_qwen2_layer_types_win_over_the_pattern() -> None:
    kinds = ["full_attention", "sliding_attention", "full_attention", "full_attention"]
    assert read(changed("qwen2-layer-windows", layer_types=kinds)).windows == (0, 20, 0, 0)
    with pytest.raises(UnsupportedModel, match="layer_types"):
        read(changed("qwen2-layer-windows", layer_types=kinds, use_sliding_window=False))


def test_olmoe() -> None:
    spec = read(case(OLMOE).config)
    assert (spec.qk_norm, spec.clip_qkv, spec.norm_topk) == ("full", 1.0, False)
    assert spec.kv_heads == spec.heads == 4  # num_key_value_heads null
    assert read(case("olmoe-gqa-normed").config).clip_qkv == 0.0


def test_mixtral() -> None:
    spec = read(case(MIXTRAL).config)
    assert (spec.norm_topk, spec.windows, spec.experts) == (True, (20, 20, 20), 4)
    assert read(case("mixtral-fused").config).windows == (0, 0, 0)


def test_a_window_as_long_as_the_context_is_none() -> None:
    assert read(changed(MIXTRAL, sliding_window=256)).windows == (0, 0, 0)
    assert read(changed(MIXTRAL, sliding_window=255)).windows == (255, 255, 255)


@pytest.mark.parametrize("name", [QWEN3, QWEN2, OLMOE, MIXTRAL])
def test_both_names_of_the_expert_count(name: str) -> None:
    experts = read(case(name).config).experts
    for key in ("num_experts", "num_local_experts"):
        config = {**without(name, "num_experts", "num_local_experts"), key: experts}
        assert read(config).experts == experts
    with pytest.raises(BrokenCheckpoint, match="contradicts itself"):
        read(changed(name, num_experts=experts, num_local_experts=experts + 1))


def test_both_spellings_of_rope() -> None:
    base = without(QWEN3, "rope_parameters")
    new = read({**base, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}})
    assert new == read({**base, "rope_theta": 500000, "rope_scaling": None})
    assert new == read({**base, "rope_theta": 5e5, "rope_scaling": {"type": "default"}})
    assert read(base).inv_freq == read({**base, "rope_theta": 10000.0}).inv_freq
    assert read(without(MIXTRAL, "rope_theta")).inv_freq == read(changed(MIXTRAL, rope_theta=1e6)).inv_freq


def test_frequencies_are_float32_of_the_formula() -> None:
    frequencies = read(case(QWEN3).config).inv_freq
    exact = 10000.0 ** (-np.arange(0, 16, 2) / 16)
    np.testing.assert_allclose(frequencies, exact, rtol=2e-7)
    assert [float(np.float32(value)) for value in frequencies] == list(frequencies)


def test_end_of_sequence_comes_from_the_generation_config_first() -> None:
    config = changed(QWEN3, eos_token_id=7)
    assert read(config).eos_ids == (7,)
    assert read(config, {"eos_token_id": [2, 9]}).eos_ids == (2, 9)
    assert read(config, {"eos_token_id": None, "bos_token_id": 4}).bos_id == 4
    assert read(without(QWEN3, "eos_token_id", "bos_token_id")).eos_ids == ()
    with pytest.raises(BrokenCheckpoint, match="1031"):
        read(config, {"eos_token_id": 1031})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, "LlamaForCausalLM .*Mixtral.*Olmoe.*Qwen2Moe.*Qwen3Moe"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"quantization_config": {"quant_method": "gptq"}}, "gptq"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "yarn"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "llama3"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "per layer type"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"num_local_experts": None}, "num_experts or num_local_experts: not a Mixture-of-Experts"),
        ({"moe_intermediate_size": None}, "moe_intermediate_size"),
        ({"mlp_only_layers": [0, 1, 2]}, "every layer dense"),
        ({"layer_types": ["sliding_attention"] * 3}, "layer_types"),
    ],
)
def test_refused_by_name(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        read(changed(QWEN3, **values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hidden_size": None}, "no hidden_size"),
        ({"hidden_size": "48"}, "hidden_size is '48'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
        ({"rms_norm_eps": None}, "rms_norm_eps is None"),
        ({"norm_topk_prob": "yes"}, "norm_topk_prob is 'yes'"),
        ({"num_key_value_heads": 3}, "3 key-value heads"),
        ({"head_dim": 15}, "head_dim 15"),
        ({"mlp_only_layers": 1}, "mlp_only_layers is 1"),
        ({"num_experts_per_tok": 9}, "9 is above the 8 experts"),
        ({"rope_parameters": {"rope_theta": -1.0}}, "rope_theta is -1.0"),
        ({"architectures": [], "model_type": None}, "names no architecture"),
    ],
)
def test_broken_configs_name_the_value(values: dict[str, Any], message: str) -> None:
    with pytest.raises(BrokenCheckpoint, match=message):
        read(changed(QWEN3, **values))


def test_olmoe_refuses_what_transformers_could_not_load() -> None:
    with pytest.raises(UnsupportedModel, match="head_dim"):
        read(changed(OLMOE, head_dim=16))
    with pytest.raises(UnsupportedModel, match="sliding_window"):
        read(changed(OLMOE, sliding_window=32))
    with pytest.raises(BrokenCheckpoint, match="clip_qkv"):
        read(changed(OLMOE, clip_qkv=0.0))


def test_model_type_stands_in_for_a_missing_architecture() -> None:
    assert read(without(QWEN3, "architectures")) == read(case(QWEN3).config)


def test_spec_is_a_value() -> None:
    spec = read(case(QWEN3).config)
    assert hash(spec) == hash(dataclasses.replace(spec))
    assert (spec.padded_hidden, spec.padded_head) == (64, 16)
