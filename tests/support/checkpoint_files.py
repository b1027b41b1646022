"""How the tiny checkpoints get their bytes: random numbers of our own, safetensors files, a tokenizer."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import tokenizers

Float32 = npt.NDArray[np.float32]


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
