"""Manifest <-> canonical JSON. Reading is strict: nothing is used before all of it is checked."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from typing import Any, cast

from cluster.errors import LibraryError
from cluster.library.format import (
    FORMAT,
    LIBRARY_VERSION,
    TRUNK_KINDS,
    BlobRef,
    Manifest,
    ResultType,
    Section,
    SectionType,
    TrunkBlob,
    TrunkManifest,
    Variant,
)
from cluster.model.spec import ModelSpec
from cluster.types import NUMERICS_VERSION
from kernels import layout

_DIGEST = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def to_bytes(manifest: Manifest) -> bytes:
    """The canonical bytes: sorted keys, no spaces, UTF-8. Equal manifests give equal bytes."""
    values = dataclasses.asdict(manifest)
    values |= {"format": FORMAT, "version": LIBRARY_VERSION, "numerics": NUMERICS_VERSION}
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def digest(manifest: Manifest) -> str:
    """The library's identity: SHA-256 of its canonical manifest, hex."""
    return hashlib.sha256(to_bytes(manifest)).hexdigest()


def from_bytes(data: bytes) -> Manifest:
    """Raises LibraryError for another format, version or numerics, and for anything not as declared."""
    try:
        values = json.loads(data)
    except ValueError as error:
        raise LibraryError(f"the library's manifest is not JSON ({error}); pack the model again") from None
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise LibraryError(
            f'this is not a {FORMAT} manifest ("format" is missing or different); pack the model'
        )
    _check_version(values.pop("version", None), LIBRARY_VERSION, "library format")
    _check_version(values.pop("numerics", None), NUMERICS_VERSION, "numerics")
    del values["format"]
    manifest = _manifest(values)
    _check_shape(manifest)
    return manifest


def _check_version(found: Any, ours: int, what: str) -> None:
    if found != ours:
        newer = isinstance(found, int) and found > ours
        do = "update moemesh" if newer else "pack the model again with this moemesh"
        raise LibraryError(f"the library has {what} version {found}, this moemesh reads version {ours}; {do}")


def _manifest(values: dict[str, Any]) -> Manifest:
    parts = _take(values, Manifest, "the manifest")
    parts["spec"] = _spec(_expect(parts["spec"], dict, "spec"))
    parts["trunk"] = _trunk(parts["trunk"])
    experts = _expect(parts["experts"], dict, "experts")
    parts["experts"] = {_name(name, "experts"): _variant(value, name) for name, value in experts.items()}
    for key in ("tokenizer", "chat_template"):
        parts[key] = None if parts[key] is None else _ref(parts[key], key)
    parts["result_type"] = cast(ResultType, _one_of(parts["result_type"], ("bf16", "f32"), "result_type"))
    _expect(parts["name"], str, "name")
    _one_of(parts["default_variant"], tuple(parts["experts"]), "default_variant")
    for key in ("report", "extensions"):
        _expect(parts[key], dict, key)
    return Manifest(**parts)


def _spec(values: dict[str, Any]) -> ModelSpec:
    try:
        return ModelSpec.from_dict(values)
    except TypeError as error:
        raise _wrong(f"spec does not describe a model ({error})") from None


def _trunk(values: Any) -> TrunkManifest:
    parts = _take(values, TrunkManifest, "trunk")
    _one_of(parts["kind"], TRUNK_KINDS, "trunk.kind")
    layers = _expect(parts["layers"], list, "trunk.layers")
    return TrunkManifest(
        kind=parts["kind"],
        embed=_trunk_blob(parts["embed"], "trunk.embed"),
        head=None if parts["head"] is None else _trunk_blob(parts["head"], "trunk.head"),
        layers=tuple(_trunk_blob(layer, f"trunk.layers[{i}]") for i, layer in enumerate(layers)),
        final=_trunk_blob(parts["final"], "trunk.final"),
    )


def _trunk_blob(values: Any, where: str) -> TrunkBlob:
    parts = _take(values, TrunkBlob, where)
    ref = _ref(parts["ref"], f"{where}.ref")
    sections = _expect(parts["sections"], dict, f"{where}.sections")
    return TrunkBlob(ref, {name: _section(value, ref, f"{where}.{name}") for name, value in sections.items()})


def _section(values: Any, ref: BlobRef, where: str) -> Section:
    parts = _take(values, Section, where)
    dtype = cast(SectionType, _one_of(parts["dtype"], ("f32", "blocks"), f"{where}.dtype"))
    shape = tuple(_count(n, f"{where}.shape") for n in _expect(parts["shape"], list, f"{where}.shape"))
    section = Section(_count(parts["offset"], where), _count(parts["bytes"], where), dtype, shape)
    if section.offset % layout.ALIGN or section.offset + section.bytes > ref.bytes:
        raise _wrong(f"{where} does not lie on a multiple of {layout.ALIGN} inside its blob")
    if dtype == "f32" and section.bytes != 4 * _product(shape):
        raise _wrong(f"{where} has {section.bytes} bytes for shape {shape}")
    if dtype == "blocks" and (len(shape) != 2 or shape[0] % layout.ROWS or shape[1] % layout.GROUP):
        raise _wrong(f"{where} is not padded to {layout.ROWS} rows and {layout.GROUP} inputs")
    return section


def _variant(values: Any, name: str) -> Variant:
    where = f"experts.{name}"
    parts = _take(values, Variant, where)
    _one_of(parts["kind"], tuple(layout.KINDS), f"{where}.kind")
    _expect(parts["extensions"], dict, f"{where}.extensions")
    if _count(parts["down_offset"], where) % layout.ALIGN:
        raise _wrong(f"{where}.down_offset is not a multiple of {layout.ALIGN}")
    layers = [_expect(layer, list, where) for layer in _expect(parts["blobs"], list, where)]
    blobs = tuple(tuple(_ref(ref, f"{where}.blobs") for ref in layer) for layer in layers)
    return Variant(parts["kind"], parts["down_offset"], blobs, parts["extensions"])


def _ref(values: Any, where: str) -> BlobRef:
    parts = _take(values, BlobRef, where)
    # The digest becomes a file name: nothing but hex digits may pass.
    if not _DIGEST.fullmatch(_expect(parts["sha256"], str, where)):
        raise _wrong(f"{where}.sha256 is not 64 lower-case hex digits")
    return BlobRef(parts["sha256"], _count(parts["bytes"], where))


def _check_shape(manifest: Manifest) -> None:
    """The manifest holds as many layers and experts as its spec says."""
    spec = manifest.spec
    if len(spec.dense_widths) != spec.layers or len(manifest.trunk.layers) != spec.layers:
        raise _wrong(f"the spec says {spec.layers} layers, the trunk has {len(manifest.trunk.layers)}")
    if (manifest.trunk.head is None) != spec.tied_embeddings:
        raise _wrong("trunk.head and spec.tied_embeddings contradict each other")
    wanted = [0 if width else spec.experts for width in spec.dense_widths]
    for name, variant in manifest.experts.items():
        if [len(layer) for layer in variant.blobs] != wanted:
            raise _wrong(
                f"experts.{name} does not have the {spec.experts} experts a sparse layer of the spec"
            )


def _take(values: Any, cls: type, where: str) -> dict[str, Any]:
    """The object's values by field; raises on unknown and missing keys (`extensions` may be missing)."""
    given: dict[str, Any] = _expect(values, dict, where)
    fields = {f.name for f in dataclasses.fields(cls)}
    if unknown := sorted(set(given) - fields):
        raise _wrong(f"{where} has the unknown key {unknown[0]!r}")
    if missing := sorted(fields - set(given) - {"extensions"}):
        raise _wrong(f"{where} lacks the key {missing[0]!r}")
    defaults: dict[str, Any] = {"extensions": {}} if "extensions" in fields else {}
    return defaults | given


def _expect(value: Any, kind: type, where: str) -> Any:
    if not isinstance(value, kind):
        raise _wrong(f"{where} must be of JSON type {kind.__name__}")
    return value


def _one_of(value: Any, allowed: tuple[str, ...], where: str) -> str:
    if value not in allowed:
        raise _wrong(f"{where} is {value!r}, not one of {', '.join(allowed)}")
    return cast(str, value)


def _name(value: str, where: str) -> str:
    if not _NAME.fullmatch(value):
        raise _wrong(f"{where} has the name {value!r}; letters, digits, '.', '_' and '-' are allowed")
    return value


def _count(value: Any, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise _wrong(f"{where} holds {value!r} where a count belongs")
    return value


def _product(shape: tuple[int, ...]) -> int:
    total = 1
    for n in shape:
        total *= n
    return total


def _wrong(what: str) -> LibraryError:
    return LibraryError(f"the library's manifest is broken: {what}; pack the model again")
