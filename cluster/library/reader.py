"""A packed library opened for use. Nothing unchecked leaves it: digests, lengths, shapes, block tables."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt

from cluster.errors import IncompleteLibrary, LibraryError
from cluster.library.blobs import BlobFolder
from cluster.library.format import BLOBS_NAME, MANIFEST_NAME, BlobRef, Manifest, TrunkBlob, Variant
from cluster.library.manifest import digest, from_bytes
from cluster.library.matrix import check_table
from cluster.library.trunk import Shape, final_shapes, layer_shapes, vocabulary_shape
from cluster.model.spec import ModelSpec
from cluster.model.template import ChatTemplate
from cluster.model.tokenizer import Tokenizer
from cluster.types import ExpertId
from kernels import layout

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Matrix:
    """A packed matrix: `data` is its whole blob (read-only uint8), the block table starts at `offset`.

    rows, width: padded. Block offsets in the table count from `offset`.
    """

    data: U8
    offset: int
    rows: int
    width: int


@dataclass(frozen=True)
class TrunkPart:
    """One trunk blob by section name (cluster/library/trunk.py lists them)."""

    blob: TrunkBlob
    data: U8

    def __contains__(self, name: str) -> bool:
        return name in self.blob.sections

    def array(self, name: str) -> F32:
        """A float section as a read-only view of its shape. Raises KeyError if the layer has none."""
        section = self.blob.sections[name]
        flat = self.data[section.offset : section.offset + section.bytes].view(np.float32)
        return flat.reshape(section.shape)

    def matrix(self, name: str) -> Matrix:
        """Raises KeyError if the layer has no such matrix."""
        section = self.blob.sections[name]
        return Matrix(self.data, section.offset, *section.shape)

    def down_offset(self, name: str) -> int:
        """name: "shared" or "dense". Bytes from its gate_up matrix to its down matrix."""
        return self.blob.sections[f"{name}_down"].offset - self.blob.sections[f"{name}_gate_up"].offset


@dataclass(frozen=True)
class TrunkBlobs:
    """The whole trunk, mapped and checked. kind: of its matrices; head is embed where the two are tied."""

    kind: str
    embed: Matrix
    head: Matrix
    final_norm: F32
    layers: tuple[TrunkPart, ...]


class Library:
    """Immutable; safe to share between threads. Blobs are mapped or read when asked for, never before."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest
        self.digest = digest(manifest)
        self.blobs = BlobFolder(path / BLOBS_NAME)

    @staticmethod
    def open(path: str | os.PathLike[str]) -> Library:
        """Reads the manifest only. Raises LibraryError if there is none or it cannot be used as it is."""
        folder = Path(path)
        try:
            data = (folder / MANIFEST_NAME).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise LibraryError(
                f"{folder} is not a library: it has no {MANIFEST_NAME}; make one with `moemesh pack`"
            ) from None
        except OSError as error:
            raise LibraryError(f"cannot read {folder / MANIFEST_NAME}: {error.strerror}") from error
        return Library(folder, from_bytes(data))

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def spec(self) -> ModelSpec:
        return self.manifest.spec

    @property
    def variants(self) -> tuple[str, ...]:
        """The default one first."""
        default = self.manifest.default_variant
        return (default, *sorted(set(self.manifest.experts) - {default}))

    def variant(self, name: str = "") -> Variant:
        """ "" is the default variant. Raises LibraryError for one that was not packed."""
        try:
            return self.manifest.experts[name or self.manifest.default_variant]
        except KeyError:
            raise LibraryError(
                f"library {self.name} has no variant {name!r}, only {', '.join(self.variants)}; "
                f"pack it with --experts {name}"
            ) from None

    def down_offset(self, variant: str) -> int:
        """Byte of every expert blob of the variant at which its down matrix starts."""
        return self.variant(variant).down_offset

    def expert_ref(self, variant: str, expert: ExpertId) -> BlobRef:
        """Raises LibraryError if the model has no such expert."""
        layers = self.variant(variant).blobs
        if not (0 <= expert.layer < len(layers) and 0 <= expert.index < len(layers[expert.layer])):
            raise LibraryError(f"library {self.name} has no expert {expert.index} in layer {expert.layer}")
        return layers[expert.layer][expert.index]

    def check_expert(self, variant: str, data: U8) -> None:
        """data: all bytes of an expert blob. Raises LibraryError unless its block tables stay inside it."""
        hidden, width = self.spec.padded_hidden, layout.pad(self.spec.expert_width, layout.GROUP)
        check_table(data, 0, 2 * width, hidden)
        check_table(data, self.down_offset(variant), hidden, width)

    def require_common(self) -> None:
        """Raises IncompleteLibrary if this folder lacks trunk, tokenizer or template, wholly or in part."""
        wanted = self.manifest.common_refs()
        missing = self.blobs.missing(wanted)
        if missing:
            raise IncompleteLibrary(
                f"{self.path} has the library {self.name} in part: {len(missing)} of {len(wanted)} blobs of "
                f"trunk and tokenizer lack, {sum(ref.bytes for ref in missing)} bytes; get them with "
                f"`moemesh library fetch SOURCE {self.path} --experts none`"
            )

    def trunk(self) -> TrunkBlobs:
        """Map and check all of the trunk. Raises CorruptBlob or LibraryError."""
        trunk, spec = self.manifest.trunk, self.spec
        embed = self._part(trunk.embed, {"embed": vocabulary_shape(spec)}).matrix("embed")
        head = embed
        if trunk.head:
            head = self._part(trunk.head, {"head": vocabulary_shape(spec)}).matrix("head")
        layers = [self._part(blob, layer_shapes(spec, i)) for i, blob in enumerate(trunk.layers)]
        final = self._part(trunk.final, final_shapes(spec))
        return TrunkBlobs(trunk.kind, embed, head, final.array("final_norm"), tuple(layers))

    def tokenizer_bytes(self) -> bytes | None:
        """tokenizer.json, None if the model came without one."""
        ref = self.manifest.tokenizer
        return None if ref is None else self.read_blob(ref)

    def tokenizer(self) -> Tokenizer:
        """Raises LibraryError if the model came without one."""
        data = self.tokenizer_bytes()
        if data is None:
            raise LibraryError(
                f"library {self.name} has no tokenizer; send token ids, or pack one with the model"
            )
        return Tokenizer.from_bytes(data, vocab=self.spec.vocab)

    def chat_template(self) -> ChatTemplate | None:
        ref = self.manifest.chat_template
        return None if ref is None else ChatTemplate.from_bytes(self.read_blob(ref))

    def read_blob(self, ref: BlobRef) -> bytes:
        """A blob's bytes, checked. Raises CorruptBlob."""
        return self.blobs.read(ref)

    def _part(self, blob: TrunkBlob, shapes: dict[str, Shape]) -> TrunkPart:
        for name in sorted(set(shapes) | set(blob.sections)):
            section, wanted = blob.sections.get(name), shapes.get(name)
            if section is None or (section.dtype, section.shape) != wanted:
                raise LibraryError(
                    f"section {name} of the trunk is not what the model's spec asks for; pack it again"
                )
        data = self.blobs.map(blob.ref)
        for section in blob.sections.values():
            if section.dtype == "blocks":
                rows, width = cast(tuple[int, int], section.shape)
                # Up to the blob's end: gate and up blocks that fell back to int8 may follow the down matrix.
                check_table(data, section.offset, rows, width)
        return TrunkPart(blob, data)
