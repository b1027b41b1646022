"""Servers and clients of blobs for tests."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.dispatch.handshake import Identity
from cluster.expert.blob_client import BlobClient
from cluster.expert.blob_server import BlobServer
from cluster.library.format import MANIFEST_NAME
from cluster.library.reader import Library

KEY = b"k" * 32


def never(seconds: float) -> bool:
    """A wait that takes no time and is never told to stop."""
    return False


def manifest_only(library: Library, folder: Path) -> Library:
    """The same library in a folder that has no blob of it."""
    folder.mkdir(parents=True)
    shutil.copy(library.path / MANIFEST_NAME, folder)
    return Library.open(folder)


@contextmanager
def blob_server(library: Library, key: bytes = KEY, **options: Any) -> Iterator[BlobServer]:
    server = BlobServer(library, Identity("hub", "hub", library=library.digest, key=key), **options)
    server.start()
    try:
        yield server
    finally:
        server.shutdown()


def client(library: Library | None, wait: Callable[[float], bool] = never, key: bytes = KEY) -> BlobClient:
    return BlobClient(Identity("node", "n", library=library.digest if library else "", key=key), wait)
