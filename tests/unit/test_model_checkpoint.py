"""Reading tensors: every layout and number type, and an error that names the file for every broken one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from cluster.errors import BrokenCheckpoint, UnsupportedModel
from cluster.model.checkpoint import Checkpoint
from support.checkpoint_files import byte_tokenizer, write_tensors
from support.checkpoints import CASES, TinyCheckpoint, case


@pytest.mark.parametrize("tiny", CASES, ids=lambda tiny: tiny.name)
def test_every_tensor_has_the_shape_that_the_spec_says(tiny: TinyCheckpoint, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(tiny.write(tmp_path))
    spec = checkpoint.spec
    assert checkpoint.name == tiny.name
    assert checkpoint.embed().shape == checkpoint.head().shape == (spec.vocab, spec.hidden)
    assert checkpoint.final_norm().shape == (spec.hidden,)
    for index in range(spec.layers):
        layer, sparse = checkpoint.layer(index), index in spec.sparse_layers
        assert layer.q.shape == (spec.heads * spec.head_dim, spec.hidden) == layer.o.shape[::-1]
        assert layer.k.shape == layer.v.shape == (spec.kv_heads * spec.head_dim, spec.hidden)
        assert (layer.gate is not None, layer.dense is None) == (sparse, sparse)
        assert (layer.q_bias is not None) == spec.qkv_bias
        assert (layer.shared is not None) == bool(sparse and spec.shared_width)
        assert layer.q.dtype == np.float32
    expert = checkpoint.expert(spec.sparse_layers[-1], spec.experts - 1)
    assert expert.gate.shape == expert.up.shape == (spec.expert_width, spec.hidden) == expert.down.shape[::-1]


@pytest.mark.parametrize("name", ["qwen3-tied-gqa", "olmoe-clip", "mixtral-old-window", "qwen2-shared"])
def test_fused_and_single_experts_are_the_same(name: str, tmp_path: Path) -> None:
    """The same weights stored both ways read the same."""
    tiny = case(name)
    single = Checkpoint.open(tiny.write(tmp_path / "single"))
    tensors = dict(tiny.tensors())
    spec, fused = single.spec, {key: value for key, value in tensors.items() if ".experts." not in key}
    for layer in spec.sparse_layers:
        experts = [single.expert(layer, index) for index in range(spec.experts)]
        block = f"model.layers.{layer}.mlp." if name != "mixtral-old-window" else f"model.layers.{layer}."
        block += "block_sparse_moe." * (name == "mixtral-old-window")
        fused[block + "experts.gate_up_proj"] = np.stack([np.concatenate(mlp[:2]) for mlp in experts])
        fused[block + "experts.down_proj"] = np.stack([mlp.down for mlp in experts])
    path = dataclasses.replace(tiny).write(tmp_path / "fused")
    write_tensors(path, fused)
    again = Checkpoint.open(path)
    for layer in spec.sparse_layers:
        for index in (0, spec.experts - 1):
            for one, other in zip(single.expert(layer, index), again.expert(layer, index), strict=True):
                np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(("dtype", "bits"), [("BF16", 8), ("F16", 11), ("F32", 24)])
def test_number_types_are_widened_exactly(dtype: Any, bits: int, tmp_path: Path) -> None:
    tiny = dataclasses.replace(case("qwen3-tied-gqa"), dtype=dtype)
    embed = Checkpoint.open(tiny.write(tmp_path)).embed()
    original = dict(tiny.tensors())["model.embed_tokens.weight"]
    assert np.abs(embed - original).max() <= np.abs(original).max() * 2.0**-bits
    mantissa = np.frexp(embed)[0] * 2.0**bits
    np.testing.assert_array_equal(mantissa, np.round(mantissa))


def test_one_shard_or_several(tmp_path: Path) -> None:
    tiny = case("qwen3-tied-gqa")
    one = Checkpoint.open(tiny.write(tmp_path / "one"))
    five = Checkpoint.open(dataclasses.replace(tiny, shards=5).write(tmp_path / "five"))
    np.testing.assert_array_equal(one.embed(), five.embed())
    np.testing.assert_array_equal(one.layer(2).o, five.layer(2).o)


def test_an_expert_is_read_without_the_others(tmp_path: Path) -> None:
    tiny = case("mixtral-fused")
    tensors = dict(tiny.tensors())
    name = "model.layers.1.mlp.experts.gate_up_proj"
    tensors[name][3] = np.nan
    path = tiny.write(tmp_path)
    write_tensors(path, tensors)
    checkpoint = Checkpoint.open(path)
    assert np.isfinite(checkpoint.expert(1, 2).gate).all()
    with pytest.raises(BrokenCheckpoint, match=r"gate_up_proj holds .* NaN or Inf"):
        checkpoint.expert(1, 3)
    with pytest.raises(IndexError):
        checkpoint.expert(1, 6)


def test_a_tied_head_stored_anyway_is_ignored(tmp_path: Path) -> None:
    tiny = case("qwen3-tied-gqa")
    tensors = dict(tiny.tensors())
    tensors["lm_head.weight"] = np.zeros_like(tensors["model.embed_tokens.weight"])
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)
    path = tiny.write(tmp_path)
    write_tensors(path, tensors)
    assert Checkpoint.open(path).head().any()


class TestBroken:
    """Each of these names the file and says what to do."""

    @pytest.fixture
    def tiny(self) -> TinyCheckpoint:
        return case("qwen3-dense-between")  # three shards behind an index

    @pytest.fixture
    def path(self, tiny: TinyCheckpoint, tmp_path: Path) -> Path:
        return tiny.write(tmp_path)

    def refused(self, path: Path, message: str, error: type[Exception] = BrokenCheckpoint) -> None:
        with pytest.raises(error, match=message):
            Checkpoint.open(path)

    def test_missing_shard(self, path: Path) -> None:
        (path / "model-00002-of-00003.safetensors").unlink()
        self.refused(path, "model-00002-of-00003.safetensors is missing.*download it again")

    @pytest.mark.parametrize("keep", [0, 5, 100, -1])
    def test_half_downloaded_shard(self, path: Path, keep: int) -> None:
        shard = path / "model-00003-of-00003.safetensors"
        shard.write_bytes(shard.read_bytes()[:keep])
        self.refused(path, "model-00003-of-00003.safetensors is .*download it again")

    def test_git_lfs_pointer(self, path: Path) -> None:
        pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
        (path / "model-00001-of-00003.safetensors").write_bytes(pointer)
        self.refused(path, "model-00001-of-00003.safetensors .*Git LFS")

    def test_header_that_is_no_json(self, path: Path) -> None:
        (path / "model-00001-of-00003.safetensors").write_bytes((8).to_bytes(8, "little") + b"not json")
        self.refused(path, "model-00001-of-00003.safetensors is not readable as JSON")

    def test_header_with_wrong_offsets(self, path: Path) -> None:
        header = json.dumps({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}}).encode()
        file = path / "model-00001-of-00003.safetensors"
        file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(16))
        self.refused(path, "broken safetensors header")

    def test_index_naming_a_missing_tensor(self, path: Path) -> None:
        file = path / "model.safetensors.index.json"
        index = json.loads(file.read_text())
        index["weight_map"]["model.norm.weight"] = "model-00003-of-00003.safetensors"
        index["weight_map"]["model.embed_tokens.weight"] = "model-00003-of-00003.safetensors"
        file.write_text(json.dumps(index))
        self.refused(path, "tensor model.* in model-00003-of-00003.safetensors, which does not hold it")

    def test_index_reaching_outside_the_folder(self, path: Path) -> None:
        file = path / "model.safetensors.index.json"
        file.write_text(json.dumps({"weight_map": {"model.norm.weight": "../elsewhere.safetensors"}}))
        self.refused(path, "outside its folder")

    def test_index_whose_shards_are_no_names(self, path: Path) -> None:
        file = path / "model.safetensors.index.json"
        file.write_text(json.dumps({"weight_map": {"model.norm.weight": 3}}))
        self.refused(path, "no weight_map")

    def test_missing_tensor(self, path: Path, tiny: TinyCheckpoint) -> None:
        tensors = dict(tiny.tensors())
        del tensors["model.layers.2.self_attn.k_proj.weight"]
        write_tensors(path, tensors, shards=3)
        self.refused(path, "no tensor model.layers.2.self_attn.k_proj.weight; download it again")

    def test_wrong_shape(self, path: Path) -> None:
        config = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps({**config, "vocab_size": 516}))
        self.refused(path, r"embed_tokens.weight has shape \[515, 48\], config.json asks for \[516, 48\]")

    def test_no_weights_at_all(self, path: Path) -> None:
        for file in path.glob("model*"):
            file.unlink()
        self.refused(path, "neither model.safetensors nor model.safetensors.index.json")

    def test_no_config(self, path: Path) -> None:
        (path / "config.json").unlink()
        self.refused(path, "config.json is missing; is .* a Hugging Face model folder")

    def test_config_that_is_no_json(self, path: Path) -> None:
        (path / "config.json").write_text('{"architectures": [')
        self.refused(path, "config.json is not readable as JSON")

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("model.layers.0.self_attn.o_proj.bias", "bias model.layers.0.self_attn.o_proj.bias"),
            ("model.layers.1.mlp.up_proj.bias", "bias model.layers.1.mlp.up_proj.bias"),
            (
                "model.layers.0.self_attn.q_proj.weight_scale",
                "tensor model.layers.0.self_attn.q_proj.weight_scale",
            ),
            ("model.layers.4.input_layernorm.weight", "tensor model.layers.4.input_layernorm.weight"),
        ],
    )
    def test_tensors_that_we_would_not_compute(
        self, path: Path, tiny: TinyCheckpoint, name: str, message: str
    ) -> None:
        write_tensors(path, {**dict(tiny.tensors()), name: np.zeros(48, np.float32)}, shards=3)
        self.refused(path, f"{message} is not part of a qwen3_moe model", UnsupportedModel)

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    def test_nan_and_inf_are_found_when_read(self, path: Path, tiny: TinyCheckpoint, value: float) -> None:
        tensors = dict(tiny.tensors())
        tensors["model.layers.0.self_attn.v_proj.weight"].flat[7] = value
        write_tensors(path, tensors, shards=3)
        with pytest.raises(
            BrokenCheckpoint, match=r"v_proj\.weight holds 1 NaN or Inf values, the first at element 7"
        ):
            Checkpoint.open(path).layer(0)

    def test_integer_weights(self, path: Path, tiny: TinyCheckpoint) -> None:
        tensors = dict(tiny.tensors())
        (path / "model.safetensors.index.json").unlink()
        embed = {"model.embed_tokens.weight": np.zeros((515, 48), np.int8)}
        save_file({**tensors, **embed}, path / "model.safetensors")
        checkpoint = Checkpoint.open(path)
        with pytest.raises(UnsupportedModel, match=r"embed_tokens\.weight is stored as I8"):
            checkpoint.embed()


def test_tokenizer_must_fit_the_vocabulary(tmp_path: Path) -> None:
    path = case("olmoe-gqa-normed").write(tmp_path)  # 301 ids, the tokenizer has 260
    checkpoint = Checkpoint.open(path)
    tokenizer = checkpoint.tokenizer()
    assert tokenizer is not None
    assert tokenizer.vocab_size == 260
    too_large = byte_tokenizer(1000)
    too_large.add_tokens([f"extra{index}" for index in range(100)])
    (path / "tokenizer.json").write_text(too_large.to_str())
    with pytest.raises(BrokenCheckpoint, match="ids up to 359, the model's end at 300"):
        checkpoint.tokenizer()
    (path / "tokenizer.json").write_text("{}")
    with pytest.raises(BrokenCheckpoint, match=r"tokenizer.json is not readable"):
        checkpoint.tokenizer()
    (path / "tokenizer.json").unlink()
    assert checkpoint.tokenizer() is None


def test_chat_template_of_the_folder(tmp_path: Path) -> None:
    path = case("olmoe-gqa-normed").write(tmp_path)
    assert Checkpoint.open(path).chat_template() is None
    (path / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    template = Checkpoint.open(path).chat_template()
    assert template is not None
    assert template.render([{"role": "user", "content": "hi"}]) == "hi"
