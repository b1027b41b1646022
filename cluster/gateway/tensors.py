"""Tensors of the open inference protocol: one element (or a list of strings) in, one element out, bytes
checked."""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from cluster.errors import InvalidRequest
from protos import open_inference_pb2 as pb

Element = bool | int | float | str

# datatype: (struct format of a raw element, field of InferTensorContents)
FORMATS: Mapping[str, tuple[str, str]] = {
    "BOOL": ("<?", "bool_contents"),
    "INT8": ("<b", "int_contents"),
    "INT16": ("<h", "int_contents"),
    "INT32": ("<i", "int_contents"),
    "INT64": ("<q", "int64_contents"),
    "UINT8": ("<B", "uint_contents"),
    "UINT16": ("<H", "uint_contents"),
    "UINT32": ("<I", "uint_contents"),
    "UINT64": ("<Q", "uint64_contents"),
    "FP32": ("<f", "fp32_contents"),
    "FP64": ("<d", "fp64_contents"),
    "BYTES": ("", "bytes_contents"),
}
KINDS: Mapping[type, tuple[str, ...]] = {
    bool: ("BOOL",),
    int: ("INT32", "INT64", "UINT32", "UINT64", "INT8", "INT16", "UINT8", "UINT16"),
    float: ("FP32", "FP64"),
    str: ("BYTES",),
    list: ("BYTES",),
}
LENGTH = struct.Struct("<I")


def read_inputs(request: pb.ModelInferRequest, known: Mapping[str, type]) -> dict[str, Element | list[str]]:
    """The one element of every input by name. Raises InvalidRequest naming the tensor and what is wrong.

    known: input name to the Python type its datatype must give; list: any number of strings.
    """
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise InvalidRequest(
            f"raw_input_contents has {len(raw)} entries for {len(request.inputs)} inputs; send one each"
        )
    values: dict[str, Element | list[str]] = {}
    for place, tensor in enumerate(request.inputs):
        if tensor.name not in known:
            raise InvalidRequest(f"unknown input {tensor.name!r}; known are {', '.join(known)}")
        if tensor.name in values:
            raise InvalidRequest(f"input {tensor.name!r} is there twice")
        _check_head(tensor, known[tensor.name])
        if known[tensor.name] is list:
            values[tensor.name] = _strings(tensor, raw[place] if raw else None)
        else:
            values[tensor.name] = _raw_element(tensor, raw[place]) if raw else _typed_element(tensor)
    return values


def _check_head(tensor: pb.ModelInferRequest.InferInputTensor, kind: type) -> None:
    if tensor.datatype not in KINDS[kind]:
        raise InvalidRequest(
            f"input {tensor.name!r} is {tensor.datatype or 'without datatype'}; it must be {KINDS[kind][0]}"
        )
    if kind is list:
        if len(tensor.shape) not in (1, 2) or any(size < 0 for size in tensor.shape):
            raise InvalidRequest(f"input {tensor.name!r} has shape {list(tensor.shape)}; it must be [n]")
    elif list(tensor.shape) not in ([1], [1, 1]):
        raise InvalidRequest(f"input {tensor.name!r} has shape {list(tensor.shape)}; it must be [1]")


def _raw_element(tensor: pb.ModelInferRequest.InferInputTensor, data: bytes) -> Element:
    if tensor.datatype == "BYTES":
        if len(data) < LENGTH.size or LENGTH.unpack_from(data)[0] != len(data) - LENGTH.size:
            raise InvalidRequest(
                f"input {tensor.name!r}: raw bytes must be one element behind its 4-byte little-endian length"
            )
        return _text(tensor.name, data[LENGTH.size :])
    layout = struct.Struct(FORMATS[tensor.datatype][0])
    if len(data) != layout.size:
        raise InvalidRequest(
            f"input {tensor.name!r} has {len(data)} raw bytes; one {tensor.datatype} has {layout.size}"
        )
    element: Element = layout.unpack(data)[0]
    return element


def _typed_element(tensor: pb.ModelInferRequest.InferInputTensor) -> Element:
    field = FORMATS[tensor.datatype][1]
    elements: Sequence[Any] = getattr(tensor.contents, field)
    if len(elements) != 1:
        raise InvalidRequest(f"input {tensor.name!r} has {len(elements)} elements in {field}; it must have 1")
    element: Element = _text(tensor.name, elements[0]) if tensor.datatype == "BYTES" else elements[0]
    return element


def _strings(tensor: pb.ModelInferRequest.InferInputTensor, raw: bytes | None) -> list[str]:
    """raw: every string behind its 4-byte little-endian length; None: they are in bytes_contents."""
    parts = list(tensor.contents.bytes_contents) if raw is None else _split(tensor.name, raw)
    if len(parts) != math.prod(tensor.shape):
        raise InvalidRequest(
            f"input {tensor.name!r} has {len(parts)} elements and shape {list(tensor.shape)}; they must agree"
        )
    return [_text(tensor.name, part) for part in parts]


def _split(name: str, data: bytes) -> list[bytes]:
    parts: list[bytes] = []
    place = 0
    while place < len(data):
        begin = place + LENGTH.size
        size = LENGTH.unpack_from(data, place)[0] if begin <= len(data) else len(data)
        place = begin + size
        if place > len(data):
            raise InvalidRequest(f"input {name!r}: raw bytes end within element {len(parts)}; send its bytes")
        parts.append(data[begin:place])
    return parts


def _text(name: str, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"input {name!r} is not UTF-8: {error.reason} at byte {error.start}") from None


def write_output(response: pb.ModelInferResponse, name: str, datatype: str, value: Element) -> None:
    """Append one [1] tensor; its bytes go to raw_output_contents, as stock clients expect."""
    response.outputs.add(name=name, datatype=datatype, shape=[1])
    if isinstance(value, str):
        data = value.encode()
        response.raw_output_contents.append(LENGTH.pack(len(data)) + data)
    else:
        response.raw_output_contents.append(struct.pack(FORMATS[datatype][0], value))
