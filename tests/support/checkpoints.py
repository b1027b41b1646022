"""Random tiny checkpoints in Hugging Face format, all four families, the same bytes on every machine.

Written with numpy and safetensors alone. The tensor names are spelled out here, not taken from
cluster.model, so that the readers are tested against what transformers loads. Weights have a standard
deviation of at least 0.1: at initialisation scale (0.02) a wrong model is indistinguishable from a right one.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import safetensors
import tokenizers

Json = dict[str, Any]
Float32 = npt.NDArray[np.float32]


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


def random_bits(seed: int, name: str, count: int) -> npt.NDArray[np.uint64]:
    """SplitMix64 (Steele, Lea, Flood 2014) counted from a key; numpy's own streams may change."""
    key = np.uint64((seed << 32) + zlib.crc32(name.encode()))
    z = (key << np.uint64(16)) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def uniform(seed: int, name: str, shape: tuple[int, ...], std: float) -> Float32:
    """Uniform around 0 with the given standard deviation."""
    unit = (random_bits(seed, name, int(np.prod(shape))) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return ((2 * unit - 1) * (3**0.5 * std)).astype(np.float32).reshape(shape)


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


def write_tensors(path: Path, tensors: dict[str, Float32], dtype: str = "BF16", shards: int = 1) -> None:
    """model.safetensors, or `shards` files behind an index."""
    if shards == 1:
        _write_shard(path / "model.safetensors", tensors, dtype)
        return
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        names = list(tensors)[shard::shards]
        _write_shard(path / file, {name: tensors[name] for name in names}, dtype)
        weight_map |= dict.fromkeys(names, file)
    index = {
        "metadata": {"total_size": sum(file.stat().st_size for file in path.glob("*.safetensors"))},
        "weight_map": weight_map,
    }
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


def _write_shard(file: Path, tensors: dict[str, Float32], dtype: str) -> None:
    spelled = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}[dtype]
    encoded = {
        name: _encode(values, dtype) for name, values in tensors.items()
    }  # alive while pointers are used
    specs = {
        name: safetensors.TensorSpec(
            dtype=spelled, shape=values.shape, data_ptr=values.ctypes.data, data_len=values.nbytes
        )
        for name, values in encoded.items()
    }
    safetensors.serialize_file(specs, file, {"format": "pt"})


def _encode(values: Float32, dtype: str) -> npt.NDArray[Any]:
    values = np.ascontiguousarray(values, np.float32)
    if dtype == "BF16":  # round to nearest even on the upper half of the bits
        bits = values.view(np.uint32).astype(np.uint64)
        return ((bits + np.uint64(0x7FFF) + (bits >> np.uint64(16) & np.uint64(1))) >> np.uint64(16)).astype(
            "<u2"
        )
    return values.astype({"F16": "<f2", "F32": "<f4"}[dtype])


def byte_tokenizer(vocab: int) -> tokenizers.Tokenizer:
    """Byte-level BPE without merges: four special ids, then one id a byte; needs a vocabulary of 260."""
    special = ["<|pad|>", "<|begin|>", "<|end|>", "<|stop|>"]
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    ids = {token: index for index, token in enumerate([*special, *alphabet][:vocab])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=ids, merges=[]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(special)
    return tokenizer


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
