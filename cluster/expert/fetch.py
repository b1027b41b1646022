"""A library, or a part of it, from whoever serves it into a folder: the manifest first, then blob by blob."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from cluster.errors import LibraryError, ProtocolError
from cluster.expert.blob_client import BlobClient
from cluster.library.format import MANIFEST_NAME, BlobRef
from cluster.library.reader import Library

MAX_MANIFEST_BYTES = 256 << 20
"""Some hundred bytes a blob: far more than any model has."""

Progress = Callable[[int, int, str], None]


def fetch_manifest(client: BlobClient, peer: str, folder: Path) -> Library:
    """The library that `peer` serves, with nothing but its manifest; what `folder` has of it stays.

    Raises LibraryError if the folder has another library, CannotStore, Unavailable or ProtocolError.
    """
    digest = client.library_of(peer)
    file = folder / MANIFEST_NAME
    if not file.exists():
        size = client.bytes_of(peer, digest)
        if size > MAX_MANIFEST_BYTES:
            raise ProtocolError(f"{peer} has a manifest of {size} bytes; no model has")
        client.fetch_file(file, BlobRef(digest, size), [peer])
    library = Library.open(folder)
    if library.digest != digest:
        raise LibraryError(
            f"{folder} has library {library.digest[:12]}, {peer} serves {digest[:12]}; choose another folder"
        )
    return library


def fetch_blobs(
    client: BlobClient, peers: Sequence[str], library: Library, refs: Sequence[BlobRef], progress: Progress
) -> int:
    """Have the library's folder hold `refs`; returns how many it did not. Raises as BlobClient.fetch."""
    missing = library.blobs.missing(refs)
    for done, ref in enumerate(missing):
        progress(done, len(missing), f"blob {ref.sha256[:12]}")
        client.fetch(library.blobs, ref, peers)
    return len(missing)
