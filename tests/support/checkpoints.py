"""Random tiny checkpoints in Hugging Face format, all four families, the same bytes on every machine.

Written with numpy and safetensors alone. The tensor names are spelled out here, not taken from
cluster.model, so that the readers are tested against what transformers loads. Weights have a standard
deviation of at least 0.1: at initialisation scale (0.02) a wrong model is indistinguishable from a right one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from support.checkpoint_files import Float32, byte_tokenizer, random_bits, uniform, write_tensors

Json = dict[str, Any]


@dataclass(frozen=True)
class TinyCheckpoint:
    """config: config.json as it is written. fused: expert tensors fused over experts (transformers 5) or
    one by one. shards: files the tensors are spread over; 1 writes no index."""

    name: str
    seed: int
    config: Json
    dtype: Literal["BF16", "F16", "F32"] = "BF16"
    fused: bool = False
    shards: int = 1

    def write(self, folder: Path) -> Path:
        """Write config, tensors and a byte-level tokenizer to folder/name, which is returned."""
        path = folder / self.name
        path.mkdir(parents=True)
        vocab = self.config["vocab_size"]
        (path / "config.json").write_text(json.dumps(self.config, indent=2))
        generation = {"bos_token_id": 1, "eos_token_id": [2, 3]}
        (path / "generation_config.json").write_text(json.dumps(generation))
        (path / "tokenizer.json").write_text(byte_tokenizer(vocab).to_str())
        write_tensors(path, dict(self.tensors()), self.dtype, self.shards)
        return path

    def tensors(self) -> Iterator[tuple[str, Float32]]:
        """Values before they are rounded to `dtype`."""
        for name, shape in tensor_shapes(self.config, self.fused):
            if "norm" in name:
                yield name, 1 + uniform(self.seed, name, shape, 0.3)
            else:
                yield name, uniform(self.seed, name, shape, max(0.1, shape[-1] ** -0.5))

    def prompt(self, tokens: int) -> list[int]:
        """Fixed random ids; a shorter prompt is a prefix of a longer one."""
        bits = random_bits(self.seed, "prompt", 4096)[:tokens]
        return [int(value) for value in bits % np.uint64(self.config["vocab_size"])]


def tensor_shapes(config: Json, fused: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    yield "model.embed_tokens.weight", (vocab, hidden)
    yield "model.norm.weight", (hidden,)
    if not config.get("tie_word_embeddings"):
        yield "lm_head.weight", (vocab, hidden)
    for layer in range(config["num_hidden_layers"]):
        for name, shape in (*_attention(config), *_mlp(config, layer, fused)):
            yield f"model.layers.{layer}.{name}", shape


def _attention(config: Json) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, heads, family = config["hidden_size"], config["num_attention_heads"], config["model_type"]
    head_dim = config.get("head_dim") or hidden // heads
    kv = (config.get("num_key_value_heads") or heads) * head_dim
    q = heads * head_dim
    yield "input_layernorm.weight", (hidden,)
    yield "post_attention_layernorm.weight", (hidden,)
    yield "self_attn.q_proj.weight", (q, hidden)
    yield "self_attn.k_proj.weight", (kv, hidden)
    yield "self_attn.v_proj.weight", (kv, hidden)
    yield "self_attn.o_proj.weight", (hidden, q)
    if family == "qwen2_moe" and config.get("qkv_bias", True):
        yield "self_attn.q_proj.bias", (q,)
        yield "self_attn.k_proj.bias", (kv,)
        yield "self_attn.v_proj.bias", (kv,)
    if family in ("qwen3_moe", "olmoe"):
        yield "self_attn.q_norm.weight", (head_dim if family == "qwen3_moe" else q,)
        yield "self_attn.k_norm.weight", (head_dim if family == "qwen3_moe" else kv,)


def _mlp(config: Json, layer: int, fused: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, family = config["hidden_size"], config["model_type"]
    step, only = config.get("decoder_sparse_step", 1), config.get("mlp_only_layers") or []
    if layer in only or (layer + 1) % step:
        yield from _swiglu("mlp.{}_proj.weight", hidden, config["intermediate_size"])
        return
    experts = config.get("num_experts") or config["num_local_experts"]
    width = config.get("moe_intermediate_size") or config["intermediate_size"]
    block = "block_sparse_moe" if family == "mixtral" and not fused else "mlp"
    yield f"{block}.gate.weight", (experts, hidden)
    if fused:
        yield f"{block}.experts.gate_up_proj", (experts, 2 * width, hidden)
        yield f"{block}.experts.down_proj", (experts, hidden, width)
    for expert in range(0 if fused else experts):
        if family == "mixtral":
            yield f"{block}.experts.{expert}.w1.weight", (width, hidden)
            yield f"{block}.experts.{expert}.w3.weight", (width, hidden)
            yield f"{block}.experts.{expert}.w2.weight", (hidden, width)
        else:
            yield from _swiglu(f"{block}.experts.{expert}.{{}}_proj.weight", hidden, width)
    if family == "qwen2_moe":
        yield from _swiglu(
            "mlp.shared_expert.{}_proj.weight", hidden, config["shared_expert_intermediate_size"]
        )
        yield "mlp.shared_expert_gate.weight", (1, hidden)


def _swiglu(name: str, hidden: int, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield name.format("gate"), (width, hidden)
    yield name.format("up"), (width, hidden)
    yield name.format("down"), (hidden, width)


def _config(family: str, **values: Any) -> Json:
    architecture = {
        "qwen3_moe": "Qwen3MoeForCausalLM",
        "qwen2_moe": "Qwen2MoeForCausalLM",
        "olmoe": "OlmoeForCausalLM",
        "mixtral": "MixtralForCausalLM",
    }[family]
    common = {
        "hidden_size": 48,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "vocab_size": 1031,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": None,
        "tie_word_embeddings": False,
    }
    return {"architectures": [architecture], "model_type": family, **common, **values}


NEW_ROPE: Json = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
OLD_ROPE: Json = {"rope_theta": 1000000.0, "rope_scaling": None}

CASES = (
    TinyCheckpoint(
        "qwen3-tied-gqa",
        seed=1,
        config=_config(
            "qwen3_moe",
            **NEW_ROPE,
            num_key_value_heads=2,
            head_dim=16,
            num_local_experts=8,
            num_experts_per_tok=2,
            moe_intermediate_size=24,
            intermediate_size=56,
            norm_topk_prob=True,
            tie_word_embeddings=True,
            rms_norm_eps=1e-6,
        ),
    ),
    TinyCheckpoint(
        "qwen3-dense-between",
        seed=2,
        fused=True,
        shards=3,
        config=_config(
            "qwen3_moe",
            **OLD_ROPE,
            num_hidden_layers=4,
            num_key_value_heads=4,
            head_dim=20,
            num_experts=6,
            num_experts_per_tok=3,
            moe_intermediate_size=24,
            intermediate_size=56,
            mlp_only_layers=[1],
            vocab_size=515,
        ),
    ),
    TinyCheckpoint(
        "qwen3-window",
        seed=3,
        dtype="F16",
        config=_config(
            "qwen3_moe",
            **NEW_ROPE,
            num_hidden_layers=4,
            num_attention_heads=6,
            num_key_value_heads=2,
            num_experts=8,
            num_experts_per_tok=4,
            moe_intermediate_size=16,
            intermediate_size=40,
            decoder_sparse_step=2,
            norm_topk_prob=True,
            use_sliding_window=True,
            sliding_window=24,
            vocab_size=777,
        ),
    ),
    TinyCheckpoint(
        "qwen2-shared",
        seed=4,
        config=_config(
            "qwen2_moe",
            **OLD_ROPE,
            hidden_size=64,
            num_key_value_heads=4,
            num_experts=8,
            num_experts_per_tok=3,
            moe_intermediate_size=24,
            intermediate_size=72,
            shared_expert_intermediate_size=40,
            use_sliding_window=False,
            sliding_window=4096,
            max_window_layers=3,
        ),
    ),
    TinyCheckpoint(
        "qwen2-layer-windows",
        seed=5,
        fused=True,
        shards=2,
        config=_config(
            "qwen2_moe",
            **NEW_ROPE,
            num_hidden_layers=4,
            num_key_value_heads=1,
            num_experts=6,
            num_experts_per_tok=2,
            moe_intermediate_size=32,
            intermediate_size=40,
            shared_expert_intermediate_size=24,
            mlp_only_layers=[2],
            norm_topk_prob=True,
            use_sliding_window=True,
            sliding_window=20,
            max_window_layers=3,
            tie_word_embeddings=True,
            vocab_size=1000,
        ),
    ),
    TinyCheckpoint(
        "olmoe-clip",
        seed=27,
        config=_config(
            "olmoe",
            **OLD_ROPE,
            num_key_value_heads=None,
            num_experts=8,
            num_experts_per_tok=4,
            intermediate_size=24,
            clip_qkv=1.0,
        ),
    ),
    TinyCheckpoint(
        "olmoe-gqa-normed",
        seed=25,
        fused=True,
        dtype="F32",
        config=_config(
            "olmoe",
            **NEW_ROPE,
            num_key_value_heads=2,
            num_experts=12,
            num_experts_per_tok=4,
            intermediate_size=16,
            norm_topk_prob=True,
            tie_word_embeddings=True,
            vocab_size=301,
        ),
    ),
    TinyCheckpoint(
        "mixtral-old-window",
        seed=18,
        config=_config(
            "mixtral",
            **OLD_ROPE,
            num_key_value_heads=1,
            num_local_experts=4,
            num_experts_per_tok=2,
            intermediate_size=40,
            sliding_window=20,
        ),
    ),
    TinyCheckpoint(
        "mixtral-fused",
        seed=9,
        fused=True,
        config=_config(
            "mixtral",
            **NEW_ROPE,
            hidden_size=64,
            num_key_value_heads=2,
            head_dim=24,
            num_local_experts=6,
            num_experts_per_tok=3,
            intermediate_size=32,
            sliding_window=None,
            tie_word_embeddings=True,
        ),
    ),
)


def case(name: str) -> TinyCheckpoint:
    return next(case for case in CASES if case.name == name)
