"""Tensors of a Hugging Face folder, read one at a time as float32, without torch.

safetensors' own numpy reader knows no bfloat16 (0.8: "data type 'bfloat16' not understood"), so this reads
the format itself: 8 bytes of header length, a JSON header {name: {dtype, shape, data_offsets}}, then the
data, offsets counted from its start (https://github.com/huggingface/safetensors#format).

Tensors are read, not mapped: mapped pages of a checkpoint larger than memory count as this process's own.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.errors import BrokenCheckpoint, UnsupportedModel

Float32 = npt.NDArray[np.float32]

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
AGAIN = "download it again"
MAX_HEADER_BYTES = 100_000_000  # the format's own limit

_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}


@dataclass(frozen=True)
class TensorPlace:
    """Where a tensor lies. start: byte offset in `file`."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int


class Shards:
    """All tensors of a folder, one file or several behind an index. Headers are read and checked at once.

    Raises BrokenCheckpoint, naming the file, for a missing or cut-short shard and for an index that names
    tensors which its shard does not hold.
    """

    def __init__(self, folder: Path) -> None:
        self._places = dict(_indexed(folder)) if (folder / INDEX).exists() else dict(_single(folder))

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._place(name).shape

    def read(self, name: str, index: int | None = None) -> Float32:
        """The tensor, or its entry `index` along the first axis, as a new float32 array.

        Raises BrokenCheckpoint if it is missing or holds NaN or Inf, UnsupportedModel for other number types.
        """
        place = self._place(name)
        if place.dtype not in _ITEM_BYTES:
            raise UnsupportedModel(
                f"{place.file.name}: tensor {name} is stored as {place.dtype}; BF16, F16 and F32 are read"
            )
        shape = place.shape if index is None else place.shape[1:]
        items = math.prod(shape)
        offset = place.start + (index or 0) * items * _ITEM_BYTES[place.dtype]
        values = _widen(_read_bytes(place.file, offset, items * _ITEM_BYTES[place.dtype]), place.dtype)
        _refuse_non_finite(values, f"{place.file.name}: tensor {name}")
        return values.reshape(shape)

    def _place(self, name: str) -> TensorPlace:
        try:
            return self._places[name]
        except KeyError:
            raise BrokenCheckpoint(f"the checkpoint has no tensor {name}; {AGAIN}") from None


def _single(folder: Path) -> Iterator[tuple[str, TensorPlace]]:
    if not (folder / SINGLE).exists():
        raise BrokenCheckpoint(f"{folder} has neither {SINGLE} nor {INDEX}; {AGAIN} in safetensors format")
    return iter(_read_header(folder / SINGLE).items())


def _indexed(folder: Path) -> Iterator[tuple[str, TensorPlace]]:
    weight_map = read_json(folder / INDEX).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise BrokenCheckpoint(f"{folder / INDEX} has no weight_map; {AGAIN}")
    headers = {}
    for shard in sorted(set(weight_map.values())):
        if Path(shard).name != shard:
            raise BrokenCheckpoint(f"{folder / INDEX} names a shard outside its folder: {shard}")
        if not (folder / shard).exists():
            raise BrokenCheckpoint(f"shard {folder / shard} is missing, though {INDEX} names it; {AGAIN}")
        headers[shard] = _read_header(folder / shard)
    for name, shard in weight_map.items():
        if name not in headers[shard]:
            raise BrokenCheckpoint(f"{INDEX} puts tensor {name} in {shard}, which does not hold it; {AGAIN}")
        yield name, headers[shard][name]


def _read_header(file: Path) -> dict[str, TensorPlace]:
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise BrokenCheckpoint(
                f"{file} is no complete safetensors file (cut short, or a Git LFS pointer); {AGAIN}"
            )
        header = _parse_object(stream.read(length), file)
    header.pop("__metadata__", None)
    try:
        return {name: _place_of(file, entry, 8 + length, size) for name, entry in header.items()}
    except (KeyError, TypeError, ValueError):
        raise BrokenCheckpoint(f"{file} has a broken safetensors header; {AGAIN}") from None


def _place_of(file: Path, entry: Any, data_start: int, size: int) -> TensorPlace:
    begin, end = map(int, entry["data_offsets"])
    shape = tuple(map(int, entry["shape"]))
    if data_start + end > size:
        raise BrokenCheckpoint(
            f"{file} is {size} bytes long, its header asks for {data_start + end}; {AGAIN}"
        )
    item = _ITEM_BYTES.get(entry["dtype"])
    if begin < 0 or min(shape, default=0) < 0 or (item and end - begin != math.prod(shape) * item):
        raise ValueError(entry)
    return TensorPlace(file, entry["dtype"], shape, data_start + begin)


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file; raises BrokenCheckpoint naming the file."""
    try:
        return _parse_object(file.read_bytes(), file)
    except FileNotFoundError:
        raise BrokenCheckpoint(f"{file} is missing; is {file.parent} a Hugging Face model folder?") from None


def _parse_object(data: bytes, file: Path) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except ValueError:  # includes UnicodeDecodeError
        value = None
    if not isinstance(value, dict):
        raise BrokenCheckpoint(f"{file} is not readable as JSON; {AGAIN}")
    return value


def _read_bytes(file: Path, offset: int, size: int) -> npt.NDArray[np.uint8]:
    buffer = np.empty(size, np.uint8)
    with file.open("rb", buffering=0) as stream:
        stream.seek(offset)
        view, done = buffer.data, 0
        while done < size:  # one read returns 2 GiB at most
            got = stream.readinto(view[done:])
            if not got:
                raise BrokenCheckpoint(f"{file} ended early at byte {offset + done}; {AGAIN}")
            done += got
    return buffer


def _widen(raw: npt.NDArray[np.uint8], dtype: str) -> Float32:
    if dtype == "F32":
        return raw.view(np.float32)
    if dtype == "F16":
        return raw.view(np.float16).astype(np.float32)
    bits = raw.view(np.uint16).astype(np.uint32)
    bits <<= np.uint32(16)
    return bits.view(np.float32)


def _refuse_non_finite(values: Float32, what: str) -> None:
    if values.size == 0:
        return
    with np.errstate(invalid="ignore"):  # minimum and maximum carry NaN and need no mask of the tensor's size
        extremes = float(values.min()), float(values.max())
    if not all(map(math.isfinite, extremes)):
        broken = np.flatnonzero(~np.isfinite(values))
        raise BrokenCheckpoint(
            f"{what} holds {broken.size} NaN or Inf values, the first at element {broken[0]}; "
            f"{AGAIN}, or ask its author"
        )
