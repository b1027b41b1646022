"""Damage to packed libraries, as disks and half-finished copies do it."""

from __future__ import annotations

import shutil
from pathlib import Path

from cluster.library.format import BlobRef
from cluster.library.reader import Library


def copy(library: Library, folder: Path) -> Library:
    """A library of its own that a test may break."""
    shutil.copytree(library.path, folder / "copy")
    return Library.open(folder / "copy")


def flip_bit(library: Library, ref: BlobRef, position: int | None = None) -> None:
    file = library.blobs.file(ref)
    data = bytearray(file.read_bytes())
    data[len(data) // 2 if position is None else position] ^= 1
    file.write_bytes(data)


def truncate(library: Library, ref: BlobRef) -> None:
    file = library.blobs.file(ref)
    file.write_bytes(file.read_bytes()[:-64])
