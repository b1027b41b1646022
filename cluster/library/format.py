"""What a library is on disk: the manifest's parts as values.

    DIR/manifest.json          canonical JSON of `Manifest`; its SHA-256 is the library's digest
    DIR/blobs/<sha256 hex>     every other byte, named by its digest

Blobs hold what is computed with, in the layout of kernels/layout.py, so that a map or a read is all the
loading there is. `extensions` objects are the only places where keys unknown to this version are kept.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from cluster.model.spec import ModelSpec

FORMAT = "moemesh-library"
LIBRARY_VERSION = 1
MANIFEST_NAME = "manifest.json"
BLOBS_NAME = "blobs"

ResultType = Literal["bf16", "f32"]
SectionType = Literal["f32", "blocks"]

TRUNK_KINDS = ("int8", "int4", "bf16", "f32")
FLOAT_KINDS = ("bf16", "f32")


@dataclass(frozen=True)
class BlobRef:
    """sha256: 64 lower-case hex digits, also the file's name; bytes: the file's exact length."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Section:
    """A named part of a trunk blob; offset is a multiple of 64.

    dtype "f32": a C-contiguous float32 array of `shape`. dtype "blocks": a matrix behind a block table,
    `shape` = (padded rows, padded inputs).
    """

    offset: int
    bytes: int
    dtype: SectionType
    shape: tuple[int, ...]


@dataclass(frozen=True)
class TrunkBlob:
    ref: BlobRef
    sections: dict[str, Section]


@dataclass(frozen=True)
class TrunkManifest:
    """The trunk's blobs; head is None where the embedding is also the head. final holds `final_norm`.

    kind: asked for; single matrices and blocks may be of another (an int4 trunk has an int8 embedding).
    """

    kind: str
    embed: TrunkBlob
    head: TrunkBlob | None
    layers: tuple[TrunkBlob, ...]
    final: TrunkBlob

    @property
    def floating(self) -> bool:
        """Whether its matrices are float, which makes its K and V float32 too."""
        return self.kind in FLOAT_KINDS

    def blobs(self) -> tuple[TrunkBlob, ...]:
        return (self.embed, *([self.head] if self.head else []), *self.layers, self.final)


@dataclass(frozen=True)
class Variant:
    """All routed experts, packed one way.

    kind: the block kind asked for; single blocks may be of another (their table says).
    down_offset: where the down matrix starts in every blob.
    blobs: [layer][expert]; a dense layer has an empty tuple.
    """

    kind: str
    down_offset: int
    blobs: tuple[tuple[BlobRef, ...], ...]
    extensions: dict[str, Any] = field(default_factory=dict)

    @property
    def floating(self) -> bool:
        """Whether rows go to these experts as float32 instead of int8."""
        return self.kind in FLOAT_KINDS

    def refs(self) -> tuple[BlobRef, ...]:
        """Every blob once, layer by layer."""
        return tuple(dict.fromkeys(ref for layer in self.blobs for ref in layer))


@dataclass(frozen=True)
class Manifest:
    """result_type: what expert output rows are rounded to before they are combined.

    default_variant: the one that is served where none is asked for.
    tokenizer: the bytes of tokenizer.json, None for a model that came without one (token ids only).
    chat_template: `ChatTemplate.to_bytes`, None if the model has none.
    report: figures of `pack` (sizes, bits a weight, quantisation errors); nothing depends on them.
    """

    name: str
    spec: ModelSpec
    result_type: ResultType
    trunk: TrunkManifest
    experts: dict[str, Variant]
    default_variant: str
    tokenizer: BlobRef | None
    chat_template: BlobRef | None
    report: dict[str, Any] = field(default_factory=dict)
    extensions: dict[str, Any] = field(default_factory=dict)

    def common_refs(self) -> tuple[BlobRef, ...]:
        """The blobs that are no experts: trunk, tokenizer, chat template. Routers and gateways need them."""
        refs = [blob.ref for blob in self.trunk.blobs()]
        refs += [ref for ref in (self.tokenizer, self.chat_template) if ref]
        return tuple(dict.fromkeys(refs))

    def refs(self) -> tuple[BlobRef, ...]:
        """Every blob of the library once, in manifest order."""
        trunk = [blob.ref for blob in self.trunk.blobs()]
        experts = [ref for variant in self.experts.values() for ref in variant.refs()]
        return tuple(dict.fromkeys([*trunk, *experts, *self.common_refs()]))
