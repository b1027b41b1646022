"""A Hugging Face checkpoint to a library, one tensor group at a time.

Memory stays at one vocabulary-sized matrix or one expert, whatever the model. The library appears under its
name only when it is complete: everything is written to a hidden sibling folder that is renamed at the end and
removed on any error. The same checkpoint gives the same bytes, and so the same library digest.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.errors import InvalidRequest, LibraryError
from cluster.library.blobs import BlobFolder
from cluster.library.blocks import Tally
from cluster.library.format import (
    BLOBS_NAME,
    FLOAT_KINDS,
    MANIFEST_NAME,
    TRUNK_KINDS,
    BlobRef,
    Manifest,
    ResultType,
    Section,
    TrunkBlob,
    TrunkManifest,
    Variant,
)
from cluster.library.manifest import to_bytes
from cluster.library.matrix import down_offset
from cluster.library.trunk import TrunkPacker, encode_expert
from cluster.model.checkpoint import Checkpoint
from cluster.model.spec import ModelSpec
from kernels import layout

Progress = Callable[[int, int, str], None]
"""(blobs done, blobs in all, what is being packed)"""

DIGITS = 6
"""Significant digits of the figures in the report."""


def pack(
    hf_dir: str | os.PathLike[str],
    out_dir: str | os.PathLike[str],
    experts: Sequence[str] = ("int8",),
    trunk: str | None = None,
    name: str | None = None,
    progress: Progress = lambda done, total, what: None,
) -> Manifest:
    """Pack the checkpoint in `hf_dir` to a new library in `out_dir`; the first of `experts` is its default.

    experts: one variant each, of layout.KINDS. trunk: of TRUNK_KINDS; None takes the type of the experts
    where all of them are of one float type, else int8. name: what clients call the model, None for the
    checkpoint's name. Raises InvalidRequest for such arguments, LibraryError for an out_dir that is in use,
    and whatever Checkpoint raises for a broken checkpoint.
    """
    kinds = _checked_kinds(experts)
    trunk_kind = _trunk_kind(kinds, trunk)
    with _checkpoint_and_folder(hf_dir, out_dir) as (checkpoint, folder):
        packer = _Packer(checkpoint, folder, progress, variants=kinds, trunk_kind=trunk_kind)
        manifest = packer.manifest(name or checkpoint.name)
        (folder / MANIFEST_NAME).write_bytes(to_bytes(manifest))
    return manifest


def result_type(kinds: Sequence[str]) -> ResultType:
    """Libraries of float variants only are references and keep float32 rows (NUMERICS section 2)."""
    return "f32" if all(kind in FLOAT_KINDS for kind in kinds) else "bf16"


class _Packer:
    """One run of pack. Reads every expert once, whatever the number of variants."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        folder: Path,
        progress: Progress,
        variants: Sequence[str],
        trunk_kind: str,
    ) -> None:
        self.checkpoint = checkpoint
        self.spec: ModelSpec = checkpoint.spec
        self.blobs = BlobFolder(folder / BLOBS_NAME)
        self.blobs.path.mkdir()
        self.variants = variants
        self.tallies = {kind: Tally() for kind in variants}
        self.trunk_kind = trunk_kind
        self._progress = progress
        self._done = 0
        self._total = self.spec.layers + 2 + len(self.spec.sparse_layers) * self.spec.experts

    def manifest(self, name: str) -> Manifest:
        # Read first: a tokenizer that does not belong to the model should fail before minutes of packing.
        tokenizer, chat_template = self._tokenizer(), self._chat_template()
        trunk, trunk_tally = self._trunk()
        experts = self._experts()
        return Manifest(
            name=name,
            spec=self.spec,
            result_type=result_type(self.variants),
            trunk=trunk,
            experts=experts,
            default_variant=self.variants[0],
            tokenizer=tokenizer,
            chat_template=chat_template,
            report={
                "trunk": _figures(trunk_tally, [blob.ref for blob in trunk.blobs()]),
                "experts": {
                    kind: _figures(self.tallies[kind], [ref for layer in variant.blobs for ref in layer])
                    for kind, variant in experts.items()
                },
            },
        )

    def _tokenizer(self) -> BlobRef | None:
        self.checkpoint.tokenizer()
        data = self.checkpoint.read_file("tokenizer.json")
        return None if data is None else self.blobs.write(data)

    def _chat_template(self) -> BlobRef | None:
        template = self.checkpoint.chat_template()
        return None if template is None else self.blobs.write(template.to_bytes())

    def _trunk(self) -> tuple[TrunkManifest, Tally]:
        packer = TrunkPacker(self.spec, layout.KINDS[self.trunk_kind])
        embed = self._trunk_blob("embedding", packer.vocabulary("embed", self.checkpoint.embed()))
        head = None
        if not self.spec.tied_embeddings:
            head = self._trunk_blob("head", packer.vocabulary("head", self.checkpoint.head()), count=0)
        layers = tuple(
            self._trunk_blob(f"trunk of layer {i}", packer.layer(i, self.checkpoint.layer(i)))
            for i in range(self.spec.layers)
        )
        final = self._trunk_blob("final norm", packer.final(self.checkpoint.final_norm()))
        return TrunkManifest(self.trunk_kind, embed, head, layers, final), packer.tally

    def _trunk_blob(
        self, what: str, packed: tuple[npt.NDArray[np.uint8], dict[str, Section]], count: int = 1
    ) -> TrunkBlob:
        data, sections = packed
        self._advance(what, count)
        return TrunkBlob(self.blobs.write(data.data), sections)

    def _experts(self) -> dict[str, Variant]:
        refs: dict[str, list[tuple[BlobRef, ...]]] = {kind: [] for kind in self.variants}
        for layer in range(self.spec.layers):
            count = 0 if self.spec.dense_widths[layer] else self.spec.experts
            packed = [self._expert(layer, index) for index in range(count)]
            for kind in self.variants:
                refs[kind].append(tuple(expert[kind] for expert in packed))
        hidden, width = self.spec.padded_hidden, layout.pad(self.spec.expert_width, layout.GROUP)
        return {
            kind: Variant(kind, down_offset(layout.KINDS[kind], hidden, width), tuple(layers))
            for kind, layers in refs.items()
        }

    def _expert(self, layer: int, index: int) -> dict[str, BlobRef]:
        weights = self.checkpoint.expert(layer, index)
        refs = {}
        for kind in self.variants:
            data, tally = encode_expert(weights, layout.KINDS[kind])
            self.tallies[kind].add(tally)
            refs[kind] = self.blobs.write(data.data)
        self._advance(f"expert {index} of layer {layer}")
        return refs

    def _advance(self, what: str, count: int = 1) -> None:
        self._done += count
        self._progress(self._done, self._total, what)


@contextmanager
def _checkpoint_and_folder(
    hf_dir: str | os.PathLike[str], out_dir: str | os.PathLike[str]
) -> Iterator[tuple[Checkpoint, Path]]:
    """The opened checkpoint and a folder that becomes `out_dir` if the block ends well."""
    out = Path(out_dir).absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise LibraryError(f"{out} exists and is not an empty folder; choose another or remove it")
    checkpoint = Checkpoint.open(hf_dir)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".packing", dir=out.parent))
        try:
            yield checkpoint, folder
            folder.chmod(0o755)  # mkdtemp makes folders private
            folder.rename(out)
        except BaseException:
            shutil.rmtree(folder)
            raise
    except OSError as error:
        raise LibraryError(f"cannot pack to {out}: {error}; make room or choose another folder") from error


def _checked_kinds(experts: Sequence[str]) -> tuple[str, ...]:
    for kind in experts:
        if kind not in layout.KINDS:
            raise InvalidRequest(f"unknown expert type {kind!r}; choose of {', '.join(layout.KINDS)}")
    if not experts or len(set(experts)) != len(experts):
        raise InvalidRequest("name at least one expert type, and each only once")
    return tuple(experts)


def _trunk_kind(kinds: Sequence[str], trunk: str | None) -> str:
    if trunk is None:
        return kinds[0] if len(set(kinds)) == 1 and kinds[0] in FLOAT_KINDS else "int8"
    if trunk not in TRUNK_KINDS:
        raise InvalidRequest(f"unknown trunk type {trunk!r}; choose of {', '.join(TRUNK_KINDS)}")
    return trunk


def _figures(tally: Tally, refs: Sequence[BlobRef]) -> dict[str, Any]:
    """What the report says of one trunk or variant. Errors are squared error over energy of the weights."""
    size = sum(ref.bytes for ref in refs)
    figures: dict[str, Any] = {
        "bytes": size,
        "weights": tally.weights,
        "bits_per_weight": _rounded(8 * size / max(tally.weights, 1)),
        "relative_error": _rounded(tally.relative_error),
        "worst_matrix_error": _rounded(tally.worst),
    }
    if tally.groups:
        figures["flattened_groups"] = _rounded(tally.flattened_groups / tally.groups)
        figures["int8_fallback_blocks"] = _rounded(tally.int8_fallback_blocks / tally.blocks)
    return figures


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
