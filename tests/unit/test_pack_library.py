"""Packing all four families and reading them back: values, padding, determinism, what is left on failure."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cluster.errors import BrokenCheckpoint, InvalidRequest, LibraryError
from cluster.library import pack as packing
from cluster.library.format import MANIFEST_NAME
from cluster.library.matrix import decode, decode_gate_up
from cluster.library.pack import pack
from cluster.library.quantise import bf16_bits, bf16_values
from cluster.library.reader import Library, Matrix, TrunkBlobs, TrunkPart
from cluster.library.verify import verify
from cluster.model.checkpoint import Checkpoint
from cluster.types import ExpertId
from kernels import layout
from support.checkpoint_files import byte_tokenizer, write_tensors
from support.checkpoints import CASES, TinyCheckpoint, case


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoints")
    for tiny in CASES:
        tiny.write(path)
    return path


@pytest.fixture(scope="module")
def reference(folder: Path) -> dict[str, Library]:
    """Every tiny checkpoint as a float32 library."""
    libraries = {}
    for tiny in CASES:
        pack(folder / tiny.name, folder / f"{tiny.name}-f32", ["f32"])
        libraries[tiny.name] = Library.open(folder / f"{tiny.name}-f32")
    return libraries


def values(matrix: Matrix) -> np.ndarray:
    return decode(matrix.data, matrix.offset, matrix.rows, matrix.width)


def kinds(matrix: Matrix) -> set[int]:
    """Of the matrix's blocks."""
    table = matrix.data[matrix.offset : matrix.offset + matrix.rows // layout.ROWS * 8].view(np.int64)
    return set((table & layout.KIND_MASK).tolist())


def check(found: np.ndarray, wanted: np.ndarray) -> None:
    """Equal where there are weights, zero in the padding."""
    inside = tuple(slice(0, n) for n in wanted.shape)
    np.testing.assert_array_equal(found[inside], wanted)
    assert np.count_nonzero(found) == np.count_nonzero(wanted)


def heads(values: np.ndarray, count: int, head_dim: int, padded: int) -> np.ndarray:
    """[count * padded, ...] -> [count * head_dim, ...]; the rest of each head must be zero."""
    split = values.reshape(count, padded, *values.shape[1:])
    assert not split[:, head_dim:].any()
    return split[:, :head_dim].reshape(count * head_dim, *values.shape[1:])


@pytest.mark.parametrize("tiny", CASES, ids=lambda c: c.name)
def test_every_tensor_is_found_again(
    tiny: TinyCheckpoint, folder: Path, reference: dict[str, Library]
) -> None:
    checkpoint, library = Checkpoint.open(folder / tiny.name), reference[tiny.name]
    spec, trunk = library.spec, library.trunk()
    assert spec == checkpoint.spec
    assert library.manifest.result_type == trunk.kind == "f32"
    check(values(trunk.embed), checkpoint.embed())
    check(values(trunk.head), checkpoint.head())
    assert (trunk.head is trunk.embed) == spec.tied_embeddings
    check(trunk.final_norm, checkpoint.final_norm())
    for index in range(spec.layers):
        check_layer(checkpoint, trunk, index)
    for layer in spec.sparse_layers:
        for index in (0, spec.experts - 1):
            check_expert(checkpoint, library, ExpertId(layer, index))
    assert library.tokenizer().encode("abc") == checkpoint.tokenizer().encode("abc")


def check_layer(checkpoint: Checkpoint, trunk: TrunkBlobs, index: int) -> None:
    spec, tensors, part = checkpoint.spec, checkpoint.layer(index), trunk.layers[index]
    head, kv = spec.padded_head, spec.kv_heads
    check(part.array("attn_norm"), tensors.attn_norm)
    check(part.array("mlp_norm"), tensors.mlp_norm)
    counts = (spec.heads, kv, kv)
    edges = np.cumsum([0, *(n * head for n in counts)])
    qkv = values(part.matrix("qkv"))
    for n, rows, wanted in zip(counts, edges, (tensors.q, tensors.k, tensors.v), strict=False):
        check(heads(qkv[rows : rows + n * head], n, spec.head_dim, head), wanted)
    o = values(part.matrix("o"))
    assert not o[:, spec.heads * head :].any()
    check(heads(o[:, : spec.heads * head].T, spec.heads, spec.head_dim, head).T, tensors.o)
    if spec.qkv_bias:
        for n, rows, wanted in zip(
            counts, edges, (tensors.q_bias, tensors.k_bias, tensors.v_bias), strict=False
        ):
            check(heads(part.array("qkv_bias")[rows : rows + n * head], n, spec.head_dim, head), wanted)
    if spec.qk_norm != "none":
        for name, n, wanted in (("q_norm", spec.heads, tensors.q_norm), ("k_norm", kv, tensors.k_norm)):
            check(heads(part.array(name), n if spec.qk_norm == "full" else 1, spec.head_dim, head), wanted)
    assert ("qkv_bias" in part, "q_norm" in part) == (spec.qkv_bias, spec.qk_norm != "none")
    assert ("gate" in part, "dense_down" in part) == (tensors.gate is not None, tensors.dense is not None)
    check_mixture(part, tensors)


def check_mixture(part: TrunkPart, tensors) -> None:
    if tensors.gate is not None:
        lanes = part.array("gate")
        check(lanes.transpose(0, 2, 1).reshape(-1, lanes.shape[1]), tensors.gate)
    if tensors.shared is not None:
        check_mlp(part, "shared", tensors.shared)
        check(part.array("shared_gate"), tensors.shared_gate)
    if tensors.dense is not None:
        check_mlp(part, "dense", tensors.dense)


def check_mlp(part: TrunkPart, name: str, wanted) -> None:
    first = part.matrix(f"{name}_gate_up")
    gate, up = decode_gate_up(first.data, first.offset, first.rows // 2, first.width)
    down = part.matrix(f"{name}_down")
    assert first.offset + part.down_offset(name) == down.offset
    for found, tensor in ((gate, wanted.gate), (up, wanted.up), (values(down), wanted.down)):
        check(found, tensor)


def check_expert(checkpoint: Checkpoint, library: Library, expert: ExpertId) -> None:
    wanted = checkpoint.expert(expert.layer, expert.index)
    data = np.frombuffer(library.read_blob(library.expert_ref("f32", expert)), np.uint8)
    hidden, width = library.spec.padded_hidden, layout.pad(library.spec.expert_width, 64)
    gate, up = decode_gate_up(data, 0, width, hidden)
    down = decode(data, library.down_offset("f32"), hidden, width)
    for found, tensor in ((gate, wanted.gate), (up, wanted.up), (down, wanted.down)):
        check(found, tensor)


def test_bf16_library_rounds_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    source = folder / "olmoe-gqa-normed"  # stored as float32
    manifest = pack(source, tmp_path / "out", ["bf16"])
    assert (manifest.trunk.kind, manifest.result_type) == ("bf16", "f32")
    trunk, wanted = Library.open(tmp_path / "out").trunk(), Checkpoint.open(source)
    check(values(trunk.embed), bf16_values(bf16_bits(wanted.embed())))
    lanes = trunk.layers[0].array("gate")
    check(lanes.transpose(0, 2, 1).reshape(-1, lanes.shape[1]), wanted.layer(0).gate)


def test_several_variants_share_a_quantised_trunk(folder: Path, tmp_path: Path) -> None:
    steps: list[tuple[int, int, str]] = []
    manifest = pack(
        folder / "qwen2-shared", tmp_path / "out", ["int8", "int4"], name="both",
        progress=lambda *step: steps.append(step),
    )  # fmt: skip
    library = Library.open(tmp_path / "out")
    assert library.manifest == manifest
    assert (library.name, library.variants, library.manifest.result_type) == (
        "both",
        ("int8", "int4"),
        "bf16",
    )
    assert manifest.trunk.kind == "int8"
    assert steps[-1][0] == steps[-1][1]
    assert [done for done, _, _ in steps] == sorted(done for done, _, _ in steps)
    trunk = library.trunk()
    wanted = Checkpoint.open(folder / "qwen2-shared").embed()
    error = ((values(trunk.embed)[: len(wanted), : wanted.shape[1]] - wanted) ** 2).sum() / (wanted**2).sum()
    assert error < 1e-4
    figures = manifest.report["experts"]
    assert figures["int8"]["relative_error"] < 1e-4 < figures["int4"]["relative_error"] < 2e-2
    assert figures["int8"]["weights"] == 3 * 8 * 3 * 24 * 64
    assert set(figures["int4"]) >= {"bits_per_weight", "flattened_groups", "int8_fallback_blocks"}


def test_the_trunk_can_be_chosen(folder: Path, tmp_path: Path) -> None:
    assert pack(folder / "qwen3-tied-gqa", tmp_path / "a", ["f32"], trunk="int8").trunk.kind == "int8"
    assert pack(folder / "qwen3-tied-gqa", tmp_path / "b", ["int8"], trunk="f32").trunk.kind == "f32"
    assert pack(folder / "qwen3-tied-gqa", tmp_path / "c", ["f32", "int8"]).trunk.kind == "int8"


def test_an_int4_trunk_keeps_its_embedding_in_int8(folder: Path, tmp_path: Path) -> None:
    source = folder / "qwen2-shared"  # a head of its own, a shared expert
    manifest = pack(source, tmp_path / "out", ["int4"], trunk="int4")
    trunk, wanted = Library.open(tmp_path / "out").trunk(), Checkpoint.open(source)
    assert (manifest.trunk.kind, trunk.kind, manifest.trunk.floating) == ("int4", "int4", False)
    assert kinds(trunk.embed) == {layout.INT8}
    part = trunk.layers[0]
    matrices = [trunk.head, *(part.matrix(name) for name in ("qkv", "o", "shared_gate_up", "shared_down"))]
    assert all(kinds(matrix) == {layout.INT4} for matrix in matrices)
    tensor = wanted.layer(0).o
    error = ((values(part.matrix("o"))[: len(tensor), : tensor.shape[1]] - tensor) ** 2).sum()
    assert 1e-4 < error / (tensor**2).sum() < 2e-2
    assert set(manifest.report["trunk"]) >= {"flattened_groups", "int8_fallback_blocks"}


def test_blocks_of_an_int4_trunk_fall_back_to_int8(tmp_path: Path) -> None:
    """A spike in every row of a shared expert: gate and up blocks no longer fit before the down matrix."""
    tiny = case("qwen2-shared")
    source, tensors = tiny.write(tmp_path), dict(tiny.tensors())
    name = "model.layers.0.mlp.shared_expert.{}_proj.weight"
    for part in ("gate", "up"):
        tensors[name.format(part)][:, 0] = 14 * tensors[name.format(part)].std()
    for file in source.glob("model*"):
        file.unlink()
    write_tensors(source, tensors, shards=1)
    manifest = pack(source, tmp_path / "out", ["int4"], trunk="int4")
    library = Library.open(tmp_path / "out")
    assert manifest.report["trunk"]["int8_fallback_blocks"] > 0
    assert not verify(library).problems
    part = library.trunk().layers[0]
    gate_up = part.matrix("shared_gate_up")
    assert layout.INT8 in kinds(gate_up)
    gate, _ = decode_gate_up(gate_up.data, gate_up.offset, gate_up.rows // 2, gate_up.width)
    wanted = Checkpoint.open(source).layer(0).shared.gate
    found = gate[: len(wanted), : wanted.shape[1]]
    assert ((found - wanted) ** 2).sum() / (wanted**2).sum() < 1e-3


def test_the_same_checkpoint_gives_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        pack(folder / "qwen2-shared", tmp_path / name, ["int8", "int4"])
    first, second = (
        {file.name: file.read_bytes() for file in (tmp_path / name).rglob("*") if file.is_file()}
        for name in "ab"
    )
    assert first == second
    assert Library.open(tmp_path / "a").digest == Library.open(tmp_path / "b").digest


@pytest.mark.parametrize(
    ("tensor", "value"),
    [
        ("model.layers.1.mlp.experts.2.up_proj.weight", np.nan),
        ("model.layers.0.mlp.gate.weight", np.inf),
        ("model.embed_tokens.weight", -np.inf),
    ],
)
def test_nan_and_inf_are_named_and_leave_nothing(tmp_path: Path, tensor: str, value: float) -> None:
    tiny = case("qwen3-tied-gqa")
    source = tiny.write(tmp_path)
    tensors = dict(tiny.tensors())
    tensors[tensor].flat[3] = value
    for file in source.glob("model*"):
        file.unlink()
    write_tensors(source, tensors, shards=1)
    with pytest.raises(BrokenCheckpoint, match=f"{tensor} holds 1 NaN or Inf"):
        pack(source, tmp_path / "to" / "out")
    assert list((tmp_path / "to").iterdir()) == []


def test_a_tokenizer_of_another_model_is_refused_before_anything_is_packed(tmp_path: Path) -> None:
    source = case("olmoe-gqa-normed").write(tmp_path)  # 301 ids
    other = byte_tokenizer(1000)
    other.add_tokens([f"extra{index}" for index in range(100)])
    (source / "tokenizer.json").write_text(other.to_str())
    steps: list[tuple[int, int, str]] = []
    with pytest.raises(BrokenCheckpoint, match="belong to different models"):
        pack(source, tmp_path / "to" / "out", progress=lambda *step: steps.append(step))
    assert steps == []
    assert list((tmp_path / "to").iterdir()) == []


def test_a_half_downloaded_shard_is_refused(tmp_path: Path) -> None:
    source = case("qwen3-tied-gqa").write(tmp_path)
    shard = sorted(source.glob("model*.safetensors"))[-1]
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(BrokenCheckpoint, match=f"{shard.name} .*download it again"):
        pack(source, tmp_path / "to" / "out")
    assert not (tmp_path / "to").exists()


def test_a_failure_leaves_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Checkpoint, layer: int, index: int) -> None:
        raise BrokenCheckpoint("NaN in expert")

    monkeypatch.setattr(Checkpoint, "expert", fail)
    with pytest.raises(BrokenCheckpoint):
        pack(folder / "qwen3-tied-gqa", tmp_path / "deep" / "out")
    assert list((tmp_path / "deep").iterdir()) == []


def test_a_disk_error_is_named_and_leaves_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: object, data: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(packing.BlobFolder, "write", full)
    with pytest.raises(LibraryError, match="No space left"):
        pack(folder / "qwen3-tied-gqa", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_output_folder_in_use_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x")
    with pytest.raises(LibraryError, match="not an empty folder"):
        pack(folder / "qwen3-tied-gqa", tmp_path / "out")
    with pytest.raises(LibraryError, match="not an empty folder"):
        pack(folder / "qwen3-tied-gqa", tmp_path / "out" / "mine.txt")
    assert (tmp_path / "out" / "mine.txt").read_text() == "x"
    (tmp_path / "empty").mkdir()
    pack(folder / "qwen3-tied-gqa", tmp_path / "empty")
    assert (tmp_path / "empty" / MANIFEST_NAME).exists()


@pytest.mark.parametrize(
    ("experts", "trunk"), [(["int3"], None), ([], None), (["int8", "int8"], None), (["int8"], "int3")]
)
def test_unknown_types_are_refused(
    folder: Path, tmp_path: Path, experts: list[str], trunk: str | None
) -> None:
    with pytest.raises(InvalidRequest):
        pack(folder / "qwen3-tied-gqa", tmp_path / "out", experts, trunk)
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_tokenizer_packs_and_says_so(tmp_path: Path) -> None:
    source = case("mixtral-fused").write(tmp_path)
    (source / "tokenizer.json").unlink()
    pack(source, tmp_path / "out")
    library = Library.open(tmp_path / "out")
    assert library.tokenizer_bytes() is None
    assert library.chat_template() is None
    with pytest.raises(LibraryError, match="no tokenizer"):
        library.tokenizer()


def test_a_chat_template_comes_along(tmp_path: Path) -> None:
    source = case("mixtral-fused").write(tmp_path)
    (source / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    pack(source, tmp_path / "out")
    template = Library.open(tmp_path / "out").chat_template()
    assert template is not None
    assert template.render([{"role": "user", "content": "hé"}]) == "hé!"


def test_blobs_are_named_by_digest_and_written_once(folder: Path, reference: dict[str, Library]) -> None:
    library = reference["qwen2-layer-windows"]
    names = sorted(file.name for file in library.blobs.path.iterdir())
    assert names == sorted(ref.sha256 for ref in library.manifest.refs())
