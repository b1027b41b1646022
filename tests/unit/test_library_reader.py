"""What a damaged library says, and when: nothing unchecked is handed out."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from cluster.errors import CorruptBlob, LibraryError
from cluster.library.blobs import BlobFolder
from cluster.library.format import BlobRef
from cluster.library.manifest import to_bytes
from cluster.library.pack import pack
from cluster.library.reader import Library
from cluster.library.verify import verify
from cluster.types import ExpertId
from support import libraries
from support.checkpoints import case

EXPERT = ExpertId(1, 3)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Library:
    folder = tmp_path_factory.mktemp("library")
    pack(case("qwen2-shared").write(folder), folder / "out", ["int8", "int4"])
    return Library.open(folder / "out")


@pytest.fixture
def library(packed: Library, tmp_path: Path) -> Library:
    return libraries.copy(packed, tmp_path)


def test_a_sound_library(packed: Library) -> None:
    steps: list[int] = []
    verdict = verify(packed, lambda done, total, what: steps.append(done))
    assert verdict.problems == verdict.strays == ()
    assert verdict.blobs == len(steps) == len(packed.manifest.refs())
    assert verdict.bytes == sum(file.stat().st_size for file in packed.blobs.path.iterdir())
    verdict.raise_if_broken()


def test_no_library_there(tmp_path: Path) -> None:
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "blobs").mkdir()
    for path in (tmp_path / "nothing", tmp_path / "half"):
        with pytest.raises(LibraryError, match=r"not a library.*moemesh pack"):
            Library.open(path)


def test_another_version_on_disk(library: Library) -> None:
    file = library.path / "manifest.json"
    values = json.loads(file.read_bytes())
    file.write_text(json.dumps(values | {"version": 2}))
    with pytest.raises(LibraryError, match="version 2, this moemesh reads version 1"):
        Library.open(library.path)


def test_a_flipped_bit_names_blob_and_digests(library: Library) -> None:
    ref = library.expert_ref("int8", EXPERT)
    libraries.flip_bit(library, ref)
    with pytest.raises(CorruptBlob) as caught:
        library.read_blob(ref)
    message = str(caught.value)
    assert message.count(ref.sha256) == 2
    assert "has the digest" in message
    assert "pack the model again or fetch" in message
    assert verify(library).problems == (message,)


def test_a_truncated_and_a_missing_blob(library: Library) -> None:
    short, gone = library.expert_ref("int8", EXPERT), library.expert_ref("int4", EXPERT)
    libraries.truncate(library, short)
    library.blobs.file(gone).unlink()
    with pytest.raises(CorruptBlob, match=f"has {short.bytes - 64} bytes, expected {short.bytes}"):
        library.read_blob(short)
    with pytest.raises(CorruptBlob, match="is missing"):
        library.read_blob(gone)
    verdict = verify(library)
    assert len(verdict.problems) == 2
    with pytest.raises(CorruptBlob, match="and 1 more problem"):
        verdict.raise_if_broken()


@pytest.mark.parametrize("part", ["embed", "head", "final", "layer"])
def test_a_broken_trunk_is_refused_at_load(library: Library, part: str) -> None:
    trunk = library.manifest.trunk
    blob = trunk.layers[1] if part == "layer" else getattr(trunk, part)
    libraries.flip_bit(library, blob.ref)
    with pytest.raises(CorruptBlob):
        library.trunk()


def test_sections_must_be_what_the_spec_asks_for(library: Library) -> None:
    spec = dataclasses.replace(library.spec, heads=2)
    manifest = dataclasses.replace(library.manifest, spec=spec)
    (library.path / "manifest.json").write_bytes(to_bytes(manifest))
    with pytest.raises(LibraryError, match=r"section (o|qkv|qkv_bias) of the trunk"):
        Library.open(library.path).trunk()


def test_a_block_table_that_points_outside_is_refused_even_with_a_right_digest(library: Library) -> None:
    data = np.frombuffer(library.read_blob(library.expert_ref("int8", EXPERT)), np.uint8).copy()
    library.check_expert("int8", data)
    data[:8].view(np.int64)[0] += data.size // 64 * 64
    with pytest.raises(LibraryError, match="outside its blob"):
        library.check_expert("int8", data)


def test_strays_are_reported_but_harmless(library: Library) -> None:
    (library.blobs.path / "notes.txt").write_text("x")
    verdict = verify(library)
    assert verdict.strays == ("notes.txt",)
    assert verdict.problems == ()


def test_a_library_without_its_blobs_is_told_as_such(library: Library) -> None:
    library.blobs.path.rename(library.path / "elsewhere")
    verdict = verify(library)
    assert len(verdict.problems) == verdict.blobs
    assert "is missing" in verdict.problems[0]


def test_unknown_variants_and_experts(packed: Library) -> None:
    assert packed.variant("") is packed.variant("int8")
    with pytest.raises(LibraryError, match="no variant 'f32', only int8, int4"):
        packed.variant("f32")
    for expert in (ExpertId(0, 8), ExpertId(3, 0), ExpertId(-1, 0), ExpertId(0, -1)):
        with pytest.raises(LibraryError, match="no expert"):
            packed.expert_ref("int8", expert)


def test_trunk_views_are_read_only_and_aligned(packed: Library) -> None:
    trunk = packed.trunk()
    for part in trunk.layers:
        assert not part.data.flags.writeable
        assert part.data.ctypes.data % 64 == 0
        with pytest.raises(KeyError):
            part.array("dense_down")
        for name, section in part.blob.sections.items():
            if section.dtype == "f32":
                assert part.array(name).ctypes.data % 64 == 0
                assert part.array(name).flags.c_contiguous


def test_blobs_are_stored_once_and_an_empty_one_maps(tmp_path: Path) -> None:
    folder = BlobFolder(tmp_path)
    assert folder.write(b"abc") == folder.write(memoryview(b"abc"))
    assert len(list(tmp_path.iterdir())) == 1
    empty = folder.write(b"")
    assert folder.map(empty).size == 0
    assert folder.read(empty) == b""
    with pytest.raises(CorruptBlob, match="missing"):
        folder.map(BlobRef("0" * 64, 3))
