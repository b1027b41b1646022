"""The other side of benchmarks/llama_cpp.py: llama.cpp over a random OLMoE-shaped model.

Runs in an environment of its own with llama-cpp-python, gguf and numpy; imports nothing of moemesh. -P keeps
this folder, whose llama_cpp.py is another one, out of the search path.
usage: python -P llama_worker.py MODEL.gguf KIND THREADS [LAYERS]      KIND: q4_0 or q8_0

The model is written where it is absent. Then it answers each line of stdin, `prefill N` or `decode N`, with
the seconds that took, and ends at the end of its input.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import llama_cpp
import numpy as np

PROMPT = 32
"""Tokens in the KV cache when decoding starts."""

CONTEXT = 1024


@dataclass(frozen=True)
class Shape:
    hidden: int = 2048
    heads: int = 16
    experts: int = 64
    top_k: int = 8
    width: int = 1024
    vocabulary: int = 50_304
    layers: int = 4


@dataclass(frozen=True)
class Quantisation:
    """Blocks of 32 weights behind one float16. data: bytes of their integers; deviation: theirs."""

    type: gguf.GGMLQuantizationType
    file_type: gguf.LlamaFileType
    data: int
    deviation: float


QUANTISATIONS = {
    "q4_0": Quantisation(gguf.GGMLQuantizationType.Q4_0, gguf.LlamaFileType.MOSTLY_Q4_0, 16, 4.6),
    "q8_0": Quantisation(gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0, 32, 73.9),
}
STD = 0.02
"""Of the weights, as a fresh model's."""


def random_blocks(rng: np.random.Generator, kind: Quantisation, *shape: int) -> np.ndarray:
    """Quantised weights drawn as they are stored: [..., columns / 32 * bytes of a block] uint8."""
    *rows, columns = shape
    blocks = rng.integers(0, 256, (*rows, columns // 32, 2 + kind.data), dtype=np.uint8)
    blocks[..., :2] = np.frombuffer(np.float16(STD / kind.deviation).tobytes(), np.uint8)
    return blocks.reshape(*rows, -1)


def quantised(shape: Shape) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every quantised tensor, in llama.cpp's names."""
    hidden, width, experts = shape.hidden, shape.width, shape.experts
    for name in ("token_embd", "output"):
        yield f"{name}.weight", (shape.vocabulary, hidden)
    for layer in range(shape.layers):
        at = f"blk.{layer}."
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            yield f"{at}{name}.weight", (hidden, hidden)
        yield f"{at}ffn_gate_exps.weight", (experts, width, hidden)
        yield f"{at}ffn_up_exps.weight", (experts, width, hidden)
        yield f"{at}ffn_down_exps.weight", (experts, hidden, width)


def floats(rng: np.random.Generator, shape: Shape) -> Iterator[tuple[str, np.ndarray]]:
    """Norms, which are one, and the gates."""
    ones = np.ones(shape.hidden, np.float32)
    yield "output_norm.weight", ones
    for layer in range(shape.layers):
        at = f"blk.{layer}."
        for name in ("attn_norm", "ffn_norm", "attn_q_norm", "attn_k_norm"):
            yield f"{at}{name}.weight", ones
        gate = rng.standard_normal((shape.experts, shape.hidden), dtype=np.float32) * np.float32(STD)
        yield f"{at}ffn_gate_inp.weight", gate


def write_model(path: Path, kind: Quantisation, shape: Shape) -> None:
    """A GGUF file of architecture olmoe; under another name until it is whole."""
    rng, unfinished = np.random.default_rng(0), path.with_suffix(".part")
    writer = gguf.GGUFWriter(unfinished, "olmoe")
    writer.add_file_type(kind.file_type)
    writer.add_context_length(4096)
    writer.add_block_count(shape.layers)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.width)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.heads)
    writer.add_rope_dimension_count(shape.hidden // shape.heads)
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_expert_count(shape.experts)
    writer.add_expert_used_count(shape.top_k)
    add_vocabulary(writer, shape.vocabulary)
    for name, values in floats(rng, shape):
        writer.add_tensor(name, values)
    for name, size in quantised(shape):
        writer.add_tensor(name, random_blocks(rng, kind, *size), raw_dtype=kind.type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    unfinished.rename(path)


def add_vocabulary(writer: gguf.GGUFWriter, size: int) -> None:
    """Names without meaning: only token ids are ever used."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("olmo")
    writer.add_token_list([f"token{i}" for i in range(size)])
    writer.add_token_types([gguf.TokenType.NORMAL] * size)
    writer.add_token_merges(["t o"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)


class Model:
    def __init__(self, path: Path, threads: int) -> None:
        self._model = llama_cpp.Llama(
            str(path),
            n_ctx=CONTEXT,
            n_batch=512,
            n_ubatch=512,
            n_threads=threads,
            n_threads_batch=threads,
            verbose=False,
        )
        self._rng = np.random.default_rng(1)
        self.prefill(PROMPT)

    def prefill(self, tokens: int) -> float:
        """Seconds for a prompt of `tokens`, at most 512."""
        ids = self._ids(tokens)
        self._model.reset()
        start = time.perf_counter()
        self._model.eval(ids)
        return time.perf_counter() - start

    def decode(self, tokens: int) -> float:
        """Seconds for `tokens` single steps after a short prompt; nothing is sampled."""
        ids = self._ids(tokens)
        self.prefill(PROMPT)
        start = time.perf_counter()
        for token in ids:
            self._model.eval([token])
        return time.perf_counter() - start

    def _ids(self, count: int) -> list[int]:
        return list(map(int, self._rng.integers(5, Shape.vocabulary - 5, count)))


def main() -> None:
    path, kind, threads = Path(sys.argv[1]), QUANTISATIONS[sys.argv[2]], int(sys.argv[3])
    shape = Shape(layers=int(sys.argv[4])) if len(sys.argv) > 4 else Shape()
    if not path.exists():
        write_model(path, kind, shape)
    model = Model(path, threads)
    print(llama_cpp.__version__, llama_cpp.llama_print_system_info().decode(), flush=True)
    for line in sys.stdin:
        verb, count = line.split()
        print(getattr(model, verb)(int(count)), flush=True)


if __name__ == "__main__":
    main()
