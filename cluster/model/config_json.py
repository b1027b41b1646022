"""Reading Hugging Face's config.json: both spellings of everything, and nothing guessed.

A value that shapes the model must be there; what transformers itself defaults has the same default here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from cluster.errors import BrokenCheckpoint, UnsupportedModel
from cluster.model.family import Json

REDO = "compare it with the published one or download it again"


class Config:
    """Typed access to one config.json. Missing or ill-typed values raise BrokenCheckpoint with their name."""

    def __init__(self, values: Json, generation: Json | None = None) -> None:
        self._values = values
        self._generation = generation or {}

    def get(self, key: str, default: Any = None) -> Any:
        """The value, or `default` where it is missing or null."""
        value = self._values.get(key)
        return default if value is None else value

    def count(self, *keys: str, default: int | None = None) -> int:
        """A whole number above zero under one of `keys`, which must agree where several are given."""
        found = {key: self._values[key] for key in keys if self._values.get(key) is not None}
        if not found:
            if default is not None:
                return default
            raise BrokenCheckpoint(f"config.json has no {' or '.join(keys)}; {REDO}")
        for key, value in found.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise BrokenCheckpoint(f"config.json: {key} is {value!r}, not a whole number above 0; {REDO}")
        if len(set(found.values())) > 1:
            raise BrokenCheckpoint(f"config.json contradicts itself: {found}; {REDO}")
        value = next(iter(found.values()))
        return int(value)

    def moe_count(self, *keys: str) -> int:
        """As `count`; a config without it is not a Mixture-of-Experts model."""
        if all(self._values.get(key) is None for key in keys):
            missing = " or ".join(keys)
            raise UnsupportedModel(
                f"config.json has no {missing}: not a Mixture-of-Experts model, and no other is served"
            )
        return self.count(*keys)

    def number(self, key: str, default: float | None = None) -> float:
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise BrokenCheckpoint(f"config.json: {key} is {value!r}, not a number; {REDO}")
        return float(value)

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise BrokenCheckpoint(f"config.json: {key} is {value!r}, not true or false; {REDO}")
        return value

    def refuse_if_set(self, *keys: str) -> None:
        """Refuse features by name that no family computes."""
        for key in keys:
            if self.get(key):
                raise UnsupportedModel(f"config.json: {key} = {self.get(key)!r} is not supported")

    def token_ids(self, key: str, vocab: int) -> tuple[int, ...]:
        """Ids under `key` of generation_config.json, which wins, or config.json; a number or a list."""
        value = self._generation.get(key)
        value = self.get(key, []) if value is None else value
        ids = tuple(value) if isinstance(value, list) else (value,)
        for token in ids:
            if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocab:
                raise BrokenCheckpoint(f"{key} {token!r} is not a token id below vocab_size {vocab}; {REDO}")
        return ids


def trunk_fields(config: Config, *, default_theta: float = 10000.0) -> dict[str, Any]:
    """The fields of ModelSpec that every family reads alike.

    Refuses by name: quantised weights, activations other than SiLU, biases outside q, k and v, rope types
    other than the default.
    """
    refuse_quantised(config)
    config.refuse_if_set("attention_bias", "mlp_bias")
    if (activation := config.get("hidden_act", "silu")) != "silu":
        raise UnsupportedModel(
            f"config.json: activation hidden_act = {activation!r} is not supported; only 'silu' is"
        )
    hidden, heads = config.count("hidden_size"), config.count("num_attention_heads")
    kv_heads = config.count("num_key_value_heads", default=heads)
    head_dim = config.count("head_dim", default=hidden // heads)
    if heads % kv_heads or head_dim % 2:
        raise BrokenCheckpoint(
            f"config.json: {heads} heads, {kv_heads} key-value heads, head_dim {head_dim} do not fit; {REDO}"
        )
    vocab = config.count("vocab_size")
    bos = config.token_ids("bos_token_id", vocab)
    return {
        "hidden": hidden,
        "layers": config.count("num_hidden_layers"),
        "heads": heads,
        "kv_heads": kv_heads,
        "head_dim": head_dim,
        "vocab": vocab,
        "context": config.count("max_position_embeddings"),
        "rms_eps": config.number("rms_norm_eps"),
        "inv_freq": rotary_frequencies(rope_theta(config, default_theta), head_dim),
        "tied_embeddings": config.flag("tie_word_embeddings"),
        "eos_ids": config.token_ids("eos_token_id", vocab),
        "bos_id": bos[0] if bos else None,
    }


def refuse_quantised(config: Config) -> None:
    quantised = config.get("quantization_config")
    if quantised is not None:
        method = quantised.get("quant_method", "unknown") if isinstance(quantised, dict) else quantised
        raise UnsupportedModel(
            f"quantised checkpoint (quantization_config: {method}); use the bf16, f16 or f32 one it came from"
        )


def rope_theta(config: Config, default: float) -> float:
    """Base of the rotary embedding from `rope_parameters` (transformers 5) or rope_theta/rope_scaling."""
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(rope, dict) or any(isinstance(value, dict) for value in rope.values()):
        raise UnsupportedModel(f"config.json: rotary embedding per layer type is not supported: {rope!r}")
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind != "default":
        raise UnsupportedModel(f"config.json: rope type {kind!r} is not supported; only 'default' is")
    partial = rope.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    if partial not in (None, 1.0):
        raise UnsupportedModel(f"config.json: partial_rotary_factor {partial!r} is not supported")
    theta = rope.get("rope_theta") or config.get("rope_theta") or default
    if isinstance(theta, bool) or not isinstance(theta, int | float) or not 0 < theta < math.inf:
        raise BrokenCheckpoint(f"config.json: rope_theta is {theta!r}, not a number above 0; {REDO}")
    return float(theta)


def rotary_frequencies(theta: float, head_dim: int) -> tuple[float, ...]:
    """1 / theta^(2i/head_dim) for i < head_dim/2, rounded to float32 at the steps where torch rounds.

    The power is taken in double and rounded once, so that it is the same on every CPU. torch's vectorised
    float32 power is up to 2 units in the last place off that, in 1 % of the values (measured; in none for
    head_dim 16, 32, 64, 80 or 128 at theta 10000).
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    powers = (np.float32(math.pow(theta, float(exponent))) for exponent in exponents)
    return tuple(float(np.float32(1.0) / power) for power in powers)


def sparse_pattern(config: Config, layers: int) -> tuple[int, ...]:
    """`dense_widths` of the Qwen families: dense by `mlp_only_layers` and `decoder_sparse_step`."""
    only, step = config.get("mlp_only_layers", []), config.count("decoder_sparse_step", default=1)
    if not isinstance(only, list):
        raise BrokenCheckpoint(f"config.json: mlp_only_layers is {only!r}, not a list of layers; {REDO}")
    dense = [layer in only or (layer + 1) % step != 0 for layer in range(layers)]
    if all(dense):
        raise UnsupportedModel("config.json makes every layer dense (mlp_only_layers, decoder_sparse_step)")
    width = config.count("intermediate_size") if any(dense) else 0
    return tuple(width if is_dense else 0 for is_dense in dense)


def check_routing(experts: int, top_k: int) -> None:
    if top_k > experts:
        raise BrokenCheckpoint(
            f"config.json: num_experts_per_tok {top_k} is above the {experts} experts; {REDO}"
        )


def windows_of(config: Config, sliding: Sequence[bool], context: int) -> tuple[int, ...]:
    """One window a layer; 0 where the layer attends to everything or the window covers the whole context.

    A `layer_types` list that says something else than the family's rule is refused.
    """
    declared = config.get("layer_types")
    if declared is not None:
        wanted = ["sliding_attention" if is_sliding else "full_attention" for is_sliding in sliding]
        if list(declared) != wanted:
            raise UnsupportedModel(f"config.json: layer_types {declared!r} is not supported by this family")
    if not any(sliding):
        return (0,) * len(sliding)
    window = config.count("sliding_window")
    window = 0 if window >= context else window
    return tuple(window if is_sliding else 0 for is_sliding in sliding)
