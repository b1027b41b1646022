"""The manifest is read strictly: versions, unknown keys, digests that are file names, shapes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

import pytest

from cluster.errors import LibraryError
from cluster.library.format import BlobRef, Manifest, Section, TrunkBlob, TrunkManifest, Variant
from cluster.library.manifest import digest, from_bytes, to_bytes
from cluster.model.spec import ModelSpec

SPEC = ModelSpec(
    family="qwen3_moe",
    hidden=64,
    layers=2,
    heads=2,
    kv_heads=1,
    head_dim=16,
    vocab=32,
    context=128,
    rms_eps=1e-6,
    inv_freq=(1.0, 0.1),
    experts=2,
    top_k=1,
    expert_width=64,
    norm_topk=True,
    dense_widths=(0, 64),
    windows=(0, 0),
    tied_embeddings=True,
    eos_ids=(2,),
)


def ref(n: int) -> BlobRef:
    return BlobRef(hashlib.sha256(bytes([n])).hexdigest(), 4096)


def blob(n: int) -> TrunkBlob:
    sections = {"norm": Section(0, 256, "f32", (64,)), "matrix": Section(256, 1024, "blocks", (16, 64))}
    return TrunkBlob(ref(n), sections)


MANIFEST = Manifest(
    name="tiny",
    spec=SPEC,
    result_type="bf16",
    trunk=TrunkManifest("int8", blob(0), None, (blob(1), blob(2)), blob(3)),
    experts={
        "int8": Variant("int8", 2048, ((ref(4), ref(5)), ())),
        "int4": Variant("int4", 1024, ((ref(6), ref(7)), ()), {"calibration": {"text": "x"}}),
    },
    default_variant="int8",
    tokenizer=ref(8),
    chat_template=None,
    report={"experts": {"int8": {"relative_error": 4.5e-05}}},
    extensions={"signature": {"key": "k"}},
)


def changed(*path: str | int, to: Any) -> bytes:
    values = json.loads(to_bytes(MANIFEST))
    inner = values
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = to
    return json.dumps(values).encode()


def test_round_trip_and_digest() -> None:
    data = to_bytes(MANIFEST)
    assert from_bytes(data) == MANIFEST
    assert digest(MANIFEST) == hashlib.sha256(data).hexdigest()


def test_the_digest_does_not_depend_on_how_the_json_is_written() -> None:
    loose = json.dumps(dict(reversed(json.loads(to_bytes(MANIFEST)).items())), indent=3).encode()
    assert digest(from_bytes(loose)) == digest(MANIFEST)
    renamed = dataclasses.replace(MANIFEST, name="other")
    assert digest(renamed) != digest(MANIFEST)


def test_every_blob_once() -> None:
    assert MANIFEST.refs() == tuple(ref(n) for n in (0, 1, 2, 3, 4, 5, 6, 7, 8))


@pytest.mark.parametrize(("key", "what"), [("version", "library format"), ("numerics", "numerics")])
def test_another_version_is_refused_with_both_numbers(key: str, what: str) -> None:
    with pytest.raises(LibraryError, match=rf"{what} version 7, .* version 1; update moemesh"):
        from_bytes(changed(key, to=7))
    with pytest.raises(LibraryError, match=rf"{what} version 0, .* version 1; pack the model again"):
        from_bytes(changed(key, to=0))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("format",), "gguf", "not a moemesh-library"),
        (("compression",), "zstd", "unknown key 'compression'"),
        (("trunk", "rotation"), 1, "unknown key 'rotation'"),
        (("experts", "int8", "skip"), [], "unknown key 'skip'"),
        (("spec", "gizmo"), 1, "gizmo"),
        (("experts", "int8", "blobs", 0, 0, "sha256"), "../../../etc/passwd", "hex digits"),
        (("experts", "int8", "blobs", 0, 0, "bytes"), -1, "count"),
        (("experts", "int8", "blobs", 0, 0, "bytes"), True, "count"),
        (("experts", "int8", "blobs", 0), [], "2 experts"),
        (("experts", "int8", "down_offset"), 100, "multiple of 64"),
        (("experts", "../x"), {}, "name '../x'"),
        (("experts",), [], "type dict"),
        (("trunk", "layers"), [], "2 layers"),
        (("trunk", "kind"), "int3", "not one of"),
        (("trunk", "embed", "sections", "norm", "offset"), 32, "multiple of 64"),
        (("trunk", "embed", "sections", "norm", "bytes"), 128, "bytes for shape"),
        (("trunk", "embed", "sections", "norm", "offset"), 1 << 40, "inside its blob"),
        (("trunk", "embed", "sections", "matrix", "shape"), [15, 64], "not padded"),
        (("trunk", "embed", "sections", "matrix", "dtype"), "f64", "not one of"),
        (("default_variant",), "int2", "not one of"),
        (("result_type",), "f16", "not one of"),
        (("spec", "tied_embeddings"), False, "contradict"),
        (("name",), 3, "type str"),
    ],
)
def test_a_broken_manifest_is_named(path: tuple[str | int, ...], value: Any, message: str) -> None:
    with pytest.raises(LibraryError, match=message):
        from_bytes(changed(*path, to=value))


def test_a_missing_key_is_named() -> None:
    values = json.loads(to_bytes(MANIFEST))
    del values["trunk"]["final"]
    with pytest.raises(LibraryError, match="trunk lacks the key 'final'"):
        from_bytes(json.dumps(values).encode())


def test_what_is_not_json_is_refused() -> None:
    for data in (b"", b"{", b"\xff\xfe", b"[]", b"3"):
        with pytest.raises(LibraryError):
            from_bytes(data)


def test_extensions_are_kept_and_may_be_missing() -> None:
    values = json.loads(to_bytes(MANIFEST))
    values["extensions"]["later"] = [1, 2]
    assert from_bytes(json.dumps(values).encode()).extensions["later"] == [1, 2]
    del values["extensions"], values["experts"]["int4"]["extensions"]
    assert from_bytes(json.dumps(values).encode()).extensions == {}
