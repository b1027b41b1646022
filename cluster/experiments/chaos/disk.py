"""What nodes have on disk: a copy of the library each, in which bits may be flipped."""

from __future__ import annotations

import shutil
from pathlib import Path

from cluster.library.reader import Library

STRIDE = 8
"""Of a node's expert blobs, every so-maniest is damaged: with any share of the experts, it reads some."""


def copies(library: Library, folder: Path, names: list[str]) -> dict[str, Library]:
    """One for each of these nodes, in a folder of its name."""
    return {name: Library.open(shutil.copytree(library.path, folder / name)) for name in names}


def damage(library: Library, number: int) -> int:
    """Flip a bit in some blobs, the same for the same number; returns in how many. Only while no process has
    them mapped: it would compute with the wrong bits, having checked the right ones."""
    refs = sorted(set(library.variant("").refs()), key=lambda ref: ref.sha256)[number % STRIDE :: STRIDE]
    for ref in refs:
        file = library.blobs.file(ref)
        data = bytearray(file.read_bytes())
        data[number % len(data)] ^= 1
        file.write_bytes(data)
    return len(refs)
