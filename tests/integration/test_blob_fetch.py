"""Blobs between real sockets and real files: resumed, checked, refused."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.config import WireSecurity
from cluster.dispatch import blobs
from cluster.dispatch.client import ControlClient
from cluster.dispatch.connection import Connection
from cluster.dispatch.frames import Frame, pack_header
from cluster.dispatch.handshake import Identity
from cluster.dispatch.kinds import Kind
from cluster.errors import (
    CannotStore,
    IncompleteLibrary,
    LibraryError,
    MoemeshError,
    ProtocolError,
    RequestAborted,
    Unavailable,
)
from cluster.expert import blob_client
from cluster.expert.blob_client import pause_s
from cluster.expert.fetch import fetch_blobs, fetch_manifest
from cluster.library.format import BlobRef
from cluster.library.incoming import SUFFIX
from cluster.library.reader import Library
from cluster.library.verify import verify
from cluster.types import ExpertId
from support import libraries
from support.blobs import KEY, blob_server, client, manifest_only, never
from support.engines import tiny_library
from support.frames import serving
from support.relay import Relay

PIECE = 1024
"""Small, so that a tiny expert takes many."""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return tiny_library(tmp_path_factory.mktemp("models"), "qwen3-tied-gqa")


@pytest.fixture
def partial(library: Library, tmp_path: Path) -> Library:
    return manifest_only(library, tmp_path / "partial")


@pytest.fixture(autouse=True)
def _small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blob_client, "PIECE_BYTES", PIECE)


@pytest.fixture
def ref(library: Library) -> BlobRef:
    found = library.expert_ref("", ExpertId(0, 3))
    assert found.bytes > 4 * PIECE
    return found


class After:
    """A wait that does something at its n-th call, and says whether to stop then."""

    def __init__(self, calls: int, action: object = None, stop: bool = False) -> None:
        self.left, self.action, self.stop = calls, action, stop

    def __call__(self, seconds: float) -> bool:
        self.left -= 1
        if self.left == 0 and callable(self.action):
            self.action()
        return self.stop and self.left <= 0


def same(library: Library, other: Library, ref: BlobRef) -> bool:
    return library.blobs.file(ref).read_bytes() == other.blobs.file(ref).read_bytes()


def test_a_whole_library(library: Library, tmp_path: Path) -> None:
    steps: list[int] = []
    with blob_server(library) as hub, client(None) as tool:
        fetched = fetch_manifest(tool, hub.address, tmp_path / "new")
        refs = fetched.manifest.refs()
        assert fetch_blobs(tool, [hub.address], fetched, refs, lambda done, *_: steps.append(done)) == len(
            refs
        )
        assert fetch_blobs(tool, [hub.address], fetched, refs, lambda *_: None) == 0
        assert hub.served.bytes > sum(ref.bytes for ref in refs)
    assert steps == list(range(len(refs)))
    assert fetched.digest == library.digest
    assert verify(fetched).problems == verify(fetched).strays == ()
    assert sorted(file.name for file in fetched.blobs.path.iterdir()) == sorted(r.sha256 for r in refs)


def test_a_cut_in_the_middle_is_gone_on_from_by_another_peer(
    library: Library, partial: Library, ref: BlobRef
) -> None:
    with blob_server(library) as first, blob_server(library) as second, Relay(first.address) as relay:
        with client(library, After(3, relay.cut)) as node:
            node.fetch(partial.blobs, ref, [relay.address, second.address])
        assert first.served.bytes == 3 * PIECE
        assert second.served.bytes == ref.bytes - 3 * PIECE
    assert same(library, partial, ref)
    assert (node.counts.blobs, node.counts.corrupt, node.counts.bytes) == (1, 0, ref.bytes)
    assert node.counts.failed == 1


def test_an_interrupted_fetch_goes_on_later(library: Library, partial: Library, ref: BlobRef) -> None:
    part = partial.blobs.path / (ref.sha256 + SUFFIX)
    with blob_server(library) as hub:
        with client(library, After(2, stop=True)) as node, pytest.raises(RequestAborted):
            node.fetch(partial.blobs, ref, [hub.address])
        assert part.stat().st_size == 2 * PIECE
        assert not partial.blobs.has(ref)
        assert verify(partial, partial=True).strays == ()
        with client(library) as node:
            node.fetch(partial.blobs, ref, [hub.address])
        assert hub.served.bytes == ref.bytes
    assert node.counts.resumed == 1
    assert same(library, partial, ref)
    assert not part.exists()


def test_a_corrupt_peer_is_left_for_another(
    library: Library, partial: Library, ref: BlobRef, tmp_path: Path
) -> None:
    bad = libraries.copy(library, tmp_path)
    libraries.flip_bit(bad, ref)
    with blob_server(bad) as corrupt, blob_server(library) as fine, client(library) as node:
        with pytest.raises(IncompleteLibrary, match="does not match its digest"):
            node.fetch(partial.blobs, ref, [corrupt.address])
        assert list(partial.blobs.path.iterdir()) == []
        node.fetch(partial.blobs, ref, [corrupt.address, fine.address])
    assert (node.counts.corrupt, node.counts.blobs) == (2, 1)
    assert same(library, partial, ref)


def test_a_corrupt_beginning_is_not_blamed_on_who_sent_the_rest(
    library: Library, partial: Library, ref: BlobRef, tmp_path: Path
) -> None:
    bad = libraries.copy(library, tmp_path)
    libraries.flip_bit(bad, ref, position=0)
    with blob_server(bad) as corrupt, blob_server(library) as fine:
        with client(library, After(1, stop=True)) as node, pytest.raises(RequestAborted):
            node.fetch(partial.blobs, ref, [corrupt.address])
        with client(library) as node:
            node.fetch(partial.blobs, ref, [fine.address])
        assert fine.served.bytes == ref.bytes - PIECE + ref.bytes
    assert node.counts.corrupt == 1
    assert same(library, partial, ref)


def test_several_fetch_at_once_into_one_folder(library: Library, partial: Library) -> None:
    refs = library.variant("").refs()[:6]
    failures: list[BaseException] = []
    done: list[int] = []

    def fetch(address: str, number: int) -> None:
        try:
            with client(library, threading.Event().wait) as node:
                for ref in refs[number:] + refs[:number]:
                    node.fetch(partial.blobs, ref, [address])
                done.append(node.counts.blobs)
        except BaseException as error:
            failures.append(error)

    with blob_server(library) as hub:
        threads = [threading.Thread(target=fetch, args=(hub.address, number)) for number in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert hub.served.bytes == sum(ref.bytes for ref in refs)
    assert not failures
    assert sum(done) == len(refs)
    assert all(same(library, partial, ref) for ref in refs)
    assert len(list(partial.blobs.path.iterdir())) == len(refs)


def test_a_folder_that_takes_nothing(library: Library, partial: Library, ref: BlobRef) -> None:
    partial.blobs.path.write_text("not a folder")
    with blob_server(library) as hub, client(library) as node:
        with pytest.raises(CannotStore, match="mend the folder"):
            node.fetch(partial.blobs, ref, [hub.address])
        partial.blobs.path.unlink()
        node.fetch(partial.blobs, ref, [hub.address])
    assert same(library, partial, ref)


def test_a_disk_that_cannot_be_read_is_a_refusal(
    library: Library, partial: Library, ref: BlobRef, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "pread", broken)
    with blob_server(library) as hub, client(library) as node:
        with pytest.raises(IncompleteLibrary, match=r"cannot read blob .*: Input/output error"):
            node.fetch(partial.blobs, ref, [hub.address])
        assert hub.served.refused == 1


def test_nobody_has_it(library: Library, partial: Library, ref: BlobRef, tmp_path: Path) -> None:
    empty = manifest_only(library, tmp_path / "empty")
    with blob_server(empty) as peer, client(library) as node:
        with pytest.raises(IncompleteLibrary, match="is not on this machine") as caught:
            node.fetch(partial.blobs, ref, [peer.address, "127.0.0.1:1"])
        assert "127.0.0.1:1" in str(caught.value)
        assert peer.served.refused == 1
        with pytest.raises(IncompleteLibrary, match="nobody to ask"):
            node.fetch(partial.blobs, ref, [])
    assert list(partial.blobs.path.iterdir()) == []


HOSTILE = [
    ["../manifest.json", 0, 10],
    ["../../" + "a" * 58, 0, 10],
    ["A" * 64, 0, 10],
    ["a" * 63, 0, 10],
    ["a" * 64 + "\n", 0, 10],
    [b"a" * 64, 0, 10],
    ["a" * 64, -1, 10],
    ["a" * 64, 0, 0],
    ["a" * 64, 0, blobs.PIECE_BYTES + 1],
    ["a" * 64, 0, True],
    ["a" * 64, 0.5, 10],
    ["a" * 64, 0],
    {"sha256": "a" * 64},
]


@pytest.mark.parametrize("header", HOSTILE, ids=repr)
def test_only_digests_of_the_library_can_be_asked_for(library: Library, header: object) -> None:
    member = Identity("tool", "t", key=KEY)
    with blob_server(library) as hub, ControlClient(hub.address, identity=member) as asking:
        with pytest.raises(ProtocolError, match="asked for"):
            asking.call(Kind.BLOB, header)  # type: ignore[arg-type]
        with pytest.raises(IncompleteLibrary, match="no blob of this library"):
            asking.call(Kind.BLOB, blobs.request("a" * 64, 0, 10))
        beyond = asking.call(Kind.BLOB, blobs.request(library.digest, 1 << 62, 10))
        assert len(beyond.payload) == 0
        with pytest.raises(ProtocolError, match="no answer to STATUS"):
            asking.call(Kind.STATUS, {})
        assert hub.served.bytes == 0


def test_strangers_and_other_libraries_get_nothing(library: Library, partial: Library, ref: BlobRef) -> None:
    with blob_server(library) as hub:
        for key in (b"", b"x" * 32):
            with client(library, key=key) as node, pytest.raises(IncompleteLibrary, match="key"):
                node.fetch(partial.blobs, ref, [hub.address])
        with ControlClient(hub.address) as rude, pytest.raises((ProtocolError, Unavailable)):
            rude.call(Kind.BLOB, blobs.request(ref.sha256, 0, 10))
        other = Identity("node", "n", library="b" * 64, key=KEY)
        with (
            ControlClient(hub.address, identity=other) as node,
            pytest.raises(ProtocolError, match="library"),
        ):
            node.call(Kind.BLOB, blobs.request(ref.sha256, 0, 10))
        assert hub.served.pieces == 0


ANSWERS = {
    "no piece": ([100], b""),
    "a piece too long": ([1 << 40], b"x" * (PIECE + 1)),
    "another length": ([4 * PIECE], b"x" * PIECE),
    "no number": (["many"], b"x" * PIECE),
    "negative": ([-1], b""),
    "no list": ({}, b""),
}


@pytest.mark.parametrize("what", ANSWERS)
def test_a_peer_that_answers_nonsense_is_left_for_another(
    library: Library, partial: Library, ref: BlobRef, what: str
) -> None:
    def answer(connection: Connection, frame: Frame) -> None:
        connection.send(Kind.REPLY, *ANSWERS[what])  # type: ignore[arg-type]

    liar = Identity("node", "liar", library=library.digest, key=KEY)
    with serving(answer, identity=liar) as bad, blob_server(library) as fine, client(library) as node:
        node.fetch(partial.blobs, ref, [bad.address, fine.address])
    assert (node.counts.failed, node.counts.blobs) == (1, 1)
    assert same(library, partial, ref)


def test_a_frame_beyond_a_piece_is_refused_before_it_is_read(
    library: Library, partial: Library, ref: BlobRef
) -> None:
    def answer(connection: Connection, frame: Frame) -> None:
        connection.sock.setblocking(True)
        connection.sock.sendall(pack_header(Kind.REPLY, [1 << 30], 1 << 30, stream=1))

    liar = Identity("node", "liar", library=library.digest, key=KEY)
    with serving(answer, identity=liar) as bad, client(library) as node:
        with pytest.raises(IncompleteLibrary, match=r"exceed|at most|larger"):
            node.fetch(partial.blobs, ref, [bad.address])
        assert node.counts.bytes == 0


@pytest.mark.parametrize("name", ["../../somewhere", "", "A" * 64])
def test_a_digest_that_a_server_claims_is_never_a_path(name: str, tmp_path: Path) -> None:
    claims = Identity("hub", "hub", library=name, key=KEY)
    with (
        serving(lambda *_: None, identity=claims) as bad,
        client(None) as tool,
        pytest.raises(ProtocolError, match="serves no library"),
    ):
        fetch_manifest(tool, bad.address, tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_another_library_is_kept(library: Library, tmp_path: Path) -> None:
    other = tiny_library(tmp_path, "qwen3-tied-gqa", experts=("int4",))
    before = (other.path / "manifest.json").read_bytes()
    with (
        blob_server(library) as hub,
        client(None) as tool,
        pytest.raises(LibraryError, match="another folder"),
    ):
        fetch_manifest(tool, hub.address, other.path)
    assert (other.path / "manifest.json").read_bytes() == before


def test_a_fetch_leaves_the_link_to_others(library: Library, partial: Library, ref: BlobRef) -> None:
    assert pause_s(2.0, 0.25) == 6.0
    assert pause_s(2.0, 1.0) == 0.0
    slept: list[float] = []

    def wait(seconds: float) -> bool:
        slept.append(seconds)
        return False

    ticks: Iterator[int] = iter(range(10**6))
    member = Identity("node", "n", library=library.digest, key=KEY)
    with (
        blob_server(library) as hub,
        blob_client.BlobClient(member, wait, clock=lambda: float(next(ticks))) as node,
    ):
        node.fetch(partial.blobs, ref, [hub.address], share=0.25)
    assert slept == [3.0] * -(-ref.bytes // PIECE)  # every piece took one tick


def test_sealed_where_it_is_asked_for(library: Library, partial: Library, ref: BlobRef) -> None:
    careful = Identity("node", "n", library=library.digest, key=KEY, security=WireSecurity.always)
    with blob_server(library) as hub, blob_client.BlobClient(careful, never) as node:
        node.fetch(partial.blobs, ref, [hub.address])
    assert same(library, partial, ref)


def test_a_partial_library_says_what_it_lacks(library: Library, partial: Library) -> None:
    with pytest.raises(IncompleteLibrary, match=r"of trunk and tokenizer lack.*library fetch"):
        partial.require_common()
    library.require_common()
    assert partial.blobs.missing(partial.manifest.refs()) == partial.manifest.refs()
    verdict = verify(partial, partial=True)
    assert (verdict.problems, verdict.missing) == ((), len(partial.manifest.refs()))
    assert verify(partial).problems
    assert issubclass(IncompleteLibrary, MoemeshError)
