"""Part files: what stays after an interruption, what does not, and who may write."""

from __future__ import annotations

import hashlib
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster.errors import CannotStore, CorruptBlob
from cluster.library.format import BlobRef
from cluster.library.incoming import SUFFIX, Busy, Incoming

DATA = os.urandom(5000)
REF = BlobRef(hashlib.sha256(DATA).hexdigest(), len(DATA))


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "blobs" / REF.sha256


def part(target: Path) -> Path:
    return target.with_name(REF.sha256 + SUFFIX)


@contextmanager
def files_of_at_most(count: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_it_goes_on_where_it_ended_and_has_no_name_before(target: Path) -> None:
    with Incoming(target, REF) as incoming:
        incoming.add(DATA[:1000])
    assert part(target).read_bytes() == DATA[:1000]
    with Incoming(target, REF) as incoming:
        assert (incoming.length, incoming.whole) == (1000, False)
        incoming.add(memoryview(DATA)[1000:])
        assert incoming.whole
        assert not target.exists()
        incoming.finish()
    assert target.read_bytes() == DATA
    assert not part(target).exists()


@pytest.mark.parametrize("wrong", [b"x" * len(DATA), DATA[:-1] + b"x"])
def test_what_does_not_match_its_digest_goes(target: Path, wrong: bytes) -> None:
    with Incoming(target, REF) as incoming:
        incoming.add(wrong)
        with pytest.raises(CorruptBlob, match="does not match"):
            incoming.finish()
        assert incoming.length == 0
        incoming.add(DATA)
        incoming.finish()
    assert target.read_bytes() == DATA


def test_more_than_the_blob_has_goes(target: Path) -> None:
    with Incoming(target, REF) as incoming, pytest.raises(CorruptBlob, match="more than the 5000"):
        incoming.add(DATA + b"x")
    assert not part(target).exists()
    target.parent.mkdir(exist_ok=True)
    part(target).write_bytes(DATA + b"left by somebody")
    with Incoming(target, REF) as incoming:
        assert incoming.length == 0


def test_a_full_disk_leaves_nothing(target: Path) -> None:
    with files_of_at_most(3000), Incoming(target, REF) as incoming:
        incoming.add(DATA[:2000])
        with pytest.raises(CannotStore, match=r"no room in .*make room"):
            incoming.add(DATA[2000:4000])
    assert list(target.parent.iterdir()) == []


def test_no_room_is_seen_before_anything_is_written(target: Path) -> None:
    huge = BlobRef(REF.sha256, 1 << 60)
    with pytest.raises(CannotStore, match="bytes lack"):
        Incoming(target, huge).__enter__()
    assert list(target.parent.iterdir()) == []


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "blobs").write_text("a file")
    with pytest.raises(CannotStore, match="cannot write"):
        Incoming(tmp_path / "blobs" / REF.sha256, REF).__enter__()


def test_one_writer_at_a_time(target: Path) -> None:
    with Incoming(target, REF) as incoming:
        incoming.add(DATA[:10])
        with pytest.raises(Busy):
            Incoming(target, REF).__enter__()
    with Incoming(target, REF) as incoming:
        assert incoming.length == 10
