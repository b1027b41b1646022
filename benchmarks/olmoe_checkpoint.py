"""Write a Hugging Face checkpoint in the shape of OLMoE-1B-7B with random weights, for scale and speed.

usage: python benchmarks/olmoe_checkpoint.py OUT [--layers 4]

Everything but the number of layers is OLMoE's: hidden 2048, 16 heads, 64 experts of width 1024, top-8,
vocabulary 50,304, bf16. Four layers are 3.8 GB on disk. Tensors are drawn and written in pieces, so
memory stays below 300 MB. The same arguments write the same bytes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

PIECE = 1 << 22
"""Elements drawn at a time: 16 MB of float32."""


@dataclass(frozen=True)
class Shape:
    hidden: int = 2048
    heads: int = 16
    experts: int = 64
    top_k: int = 8
    width: int = 1024
    layers: int = 4
    vocabulary: int = 50_304


@dataclass(frozen=True)
class Tensor:
    """A tensor to write: normally distributed with deviation `std` around `mean`, as bf16."""

    name: str
    shape: tuple[int, ...]
    mean: float = 0.0
    std: float = 0.02

    @property
    def elements(self) -> int:
        return int(np.prod(self.shape))


def config(shape: Shape) -> dict[str, object]:
    """config.json as transformers writes it for OlmoeForCausalLM."""
    return {
        "architectures": ["OlmoeForCausalLM"],
        "model_type": "olmoe",
        "attention_bias": False,
        "clip_qkv": None,
        "dtype": "bfloat16",
        "eos_token_id": 0,
        "pad_token_id": 1,
        "hidden_act": "silu",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.width,
        "max_position_embeddings": 4096,
        "norm_topk_prob": False,
        "num_attention_heads": shape.heads,
        "num_experts": shape.experts,
        "num_experts_per_tok": shape.top_k,
        "num_hidden_layers": shape.layers,
        "num_key_value_heads": shape.heads,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "vocab_size": shape.vocabulary,
    }


def shards(shape: Shape) -> Iterator[list[Tensor]]:
    """The tensors of each file: one file a layer, the last one has embedding, final norm and head."""
    hidden, width = shape.hidden, shape.width
    for layer in range(shape.layers):
        at = f"model.layers.{layer}."
        norms = ("input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm")
        tensors = [Tensor(f"{at}{name}.weight", (hidden,), mean=1.0) for name in norms]
        tensors += [Tensor(f"{at}self_attn.{name}_proj.weight", (hidden, hidden)) for name in "qkvo"]
        tensors.append(Tensor(f"{at}mlp.gate.weight", (shape.experts, hidden)))
        for expert in range(shape.experts):
            name = f"{at}mlp.experts.{expert}."
            tensors.append(Tensor(f"{name}gate_proj.weight", (width, hidden)))
            tensors.append(Tensor(f"{name}up_proj.weight", (width, hidden)))
            tensors.append(Tensor(f"{name}down_proj.weight", (hidden, width)))
        yield tensors
    yield [
        Tensor("model.embed_tokens.weight", (shape.vocabulary, hidden), std=1.0),
        Tensor("model.norm.weight", (hidden,), mean=1.0),
        Tensor("lm_head.weight", (shape.vocabulary, hidden)),
    ]


def bf16(values: np.ndarray) -> np.ndarray:
    """float32 to bf16 bits (uint16), to nearest, ties to even."""
    bits = values.view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(
        np.uint16
    )


def write_shard(path: Path, tensors: list[Tensor], rng: np.random.Generator) -> None:
    """One safetensors file: length of the header (u64), header (JSON), then the tensors in its order."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        end = offset + 2 * tensor.elements
        header[tensor.name] = {"dtype": "BF16", "shape": tensor.shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            for start in range(0, tensor.elements, PIECE):
                piece = rng.standard_normal(min(PIECE, tensor.elements - start), dtype=np.float32)
                file.write(bf16(piece * np.float32(tensor.std) + np.float32(tensor.mean)).tobytes())


def byte_alphabet() -> list[str]:
    """The 256 characters that stand for bytes in byte-level BPE (Radford et al. 2019, GPT-2)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    names = {b: chr(b) for b in printable}
    rest = [b for b in range(256) if b not in names]
    names |= {b: chr(256 + i) for i, b in enumerate(rest)}
    return [names[b] for b in range(256)]


def tokenizer(vocabulary: int) -> dict[str, object]:
    """tokenizer.json of a byte-level BPE with exactly `vocabulary` ids.

    Two special ones, the 256 bytes, then pairs of bytes, those that text is made of first.
    """
    special = ["<|endoftext|>", "<|padding|>"]
    alphabet = byte_alphabet()
    wanted = vocabulary - len(special) - len(alphabet)
    if not 0 <= wanted <= len(alphabet) ** 2:
        raise ValueError(f"a vocabulary of {vocabulary} is not between 258 and {258 + 256**2}")
    order = [*range(97, 123), 32, *range(65, 91), *range(48, 58)]
    order += [b for b in range(256) if b not in order]
    ranked = sorted((i + j, i, j) for i in range(256) for j in range(256))[:wanted]
    merges = [[alphabet[order[i]], alphabet[order[j]]] for _, i, j in ranked]
    tokens = special + alphabet + [a + b for a, b in merges]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": text, "special": True, "single_word": False, "lstrip": False}
            | {"rstrip": False, "normalized": False}
            for i, text in enumerate(special)
        ],
        "normalizer": None,
        "pre_tokenizer": level,
        "post_processor": None,
        "decoder": level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": merges,
        },
    }


def write_checkpoint(out: Path, shape: Shape, seed: int = 0) -> None:
    """Write the whole folder; `out` is created. Progress, a line a file, goes to stderr."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "tokenizer.json").write_text(json.dumps(tokenizer(shape.vocabulary)))
    (out / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    (out / "config.json").write_text(json.dumps(config(shape), indent=2))
    (out / "generation_config.json").write_text(json.dumps({"eos_token_id": 0, "pad_token_id": 1}))
    count, where, total = shape.layers + 1, {}, 0
    for number, tensors in enumerate(shards(shape), start=1):
        name = f"model-{number:05}-of-{count:05}.safetensors"
        print(f"writing {name}", file=sys.stderr)
        write_shard(out / name, tensors, np.random.default_rng([seed, number]))
        where |= {tensor.name: name for tensor in tensors}
        total += sum(2 * tensor.elements for tensor in tensors)
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, default=Shape.layers)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    write_checkpoint(arguments.out, Shape(layers=arguments.layers), arguments.seed)


if __name__ == "__main__":
    main()
