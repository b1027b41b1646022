"""The synthetic checkpoint is one that stock libraries read, of the promised shape."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from tokenizers import Tokenizer

from benchmarks.olmoe_checkpoint import Shape, bf16, tokenizer, write_checkpoint

TINY = Shape(hidden=64, heads=4, experts=4, top_k=2, width=32, layers=2, vocabulary=512)


def test_every_tensor_of_the_index_is_in_its_shard(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, TINY)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    size = 0
    for name, file in index["weight_map"].items():
        with safe_open(tmp_path / file, "np") as shard:
            part = shard.get_slice(name)
            assert part.get_dtype() == "BF16"
            size += 2 * int(np.prod(part.get_shape()))
    assert size == index["metadata"]["total_size"]
    assert len(index["weight_map"]) == TINY.layers * (9 + 3 * TINY.experts) + 3
    assert sum(f.stat().st_size for f in tmp_path.glob("*.safetensors")) >= size


def test_the_same_arguments_write_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        write_checkpoint(tmp_path / name, TINY)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name


@pytest.mark.parametrize("vocabulary", [258, 512, 50_304])
def test_the_tokenizer_has_every_id_and_gives_text_back(vocabulary: int) -> None:
    made = Tokenizer.from_str(json.dumps(tokenizer(vocabulary)))
    assert made.get_vocab_size() == vocabulary
    assert sorted(made.get_vocab().values()) == list(range(vocabulary))
    text = "In the beginning – 猫, naïve\n\tdef f(x): 🙂"
    assert made.decode(made.encode(text).ids) == text


def test_the_tokenizer_refuses_a_vocabulary_it_cannot_fill() -> None:
    with pytest.raises(ValueError, match="not between 258"):
        tokenizer(257)


def test_bf16_rounds_to_nearest_even() -> None:
    exact = np.array([1.0, -2.5, 0.0], np.float32)
    assert (bf16(exact).astype(np.uint32) << 16).view(np.float32).tolist() == exact.tolist()
    ties = np.array([0x3F80_8000, 0x3F81_8000, 0x3F80_8001], np.uint32).view(np.float32)
    assert bf16(ties).tolist() == [0x3F80, 0x3F82, 0x3F81]
