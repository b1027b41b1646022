"""Read every byte of a library and say what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cluster.errors import CorruptBlob, LibraryError
from cluster.library.format import BlobRef
from cluster.library.incoming import SUFFIX
from cluster.library.reader import Library

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Verdict:
    """blobs, bytes: of the whole library. problems: one line each, none if it is sound.

    strays: files in the blob folder that the manifest does not name; harmless, wasted space. missing: blobs
    that are not there, which are problems too unless the library may be partial.
    """

    blobs: int
    bytes: int
    problems: tuple[str, ...]
    strays: tuple[str, ...]
    missing: int = 0

    def raise_if_broken(self) -> None:
        """Raises CorruptBlob with the first problem and the number of others."""
        if self.problems:
            others = f" (and {len(self.problems) - 1} more problems)" if self.problems[1:] else ""
            raise CorruptBlob(self.problems[0] + others)


def verify(
    library: Library, progress: Progress = lambda done, total, what: None, partial: bool = False
) -> Verdict:
    """Check length and digest of every blob and every block table; goes on after a problem.

    partial: the folder need not have every blob.
    """
    refs = library.manifest.refs()
    absent = {ref for ref in refs if not library.blobs.file(ref).exists()}
    tables = _expert_variants(library)
    problems = []
    for done, ref in enumerate(refs):
        progress(done, len(refs), f"blob {ref.sha256[:12]}")
        if partial and ref in absent:
            continue
        try:
            data = library.blobs.map(ref)
            if ref in tables:
                library.check_expert(tables[ref], data)
        except LibraryError as error:
            problems.append(str(error))
    if not problems and absent.isdisjoint(library.manifest.common_refs()):
        try:
            library.trunk()
        except LibraryError as error:
            problems.append(str(error))
    named = {name for ref in refs for name in (ref.sha256, ref.sha256 + SUFFIX)}
    folder = library.blobs.path
    found = folder.iterdir() if folder.is_dir() else ()  # all blobs are problems already without it
    strays = sorted(file.name for file in found if file.name not in named)
    return Verdict(len(refs), sum(ref.bytes for ref in refs), tuple(problems), tuple(strays), len(absent))


def _expert_variants(library: Library) -> dict[BlobRef, str]:
    variants = library.manifest.experts
    return {ref: name for name, variant in variants.items() for layer in variant.blobs for ref in layer}
