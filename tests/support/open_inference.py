"""Requests and answers of the open inference protocol, by our own generated code."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from protos import open_inference_pb2 as pb
from protos import open_inference_pb2_grpc
from support.fake_router import FakeRouter
from support.gateways import gateway

Stub = open_inference_pb2_grpc.GRPCInferenceServiceStub


@contextmanager
def stub_of(router: FakeRouter) -> Iterator[Stub]:
    """Of a gateway before this router."""
    with gateway({"r0": router.address}) as service, grpc.insecure_channel(service.address) as channel:
        yield Stub(channel)


def raw_bytes(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<I", len(data)) + data


RAW: dict[str, tuple[str, Any]] = {
    "text_input": ("BYTES", raw_bytes),
    "sampling_parameters": ("BYTES", raw_bytes),
    "stream": ("BOOL", lambda value: struct.pack("<?", value)),
    "max_tokens": ("INT32", lambda value: struct.pack("<i", value)),
    "temperature": ("FP32", lambda value: struct.pack("<f", value)),
    "seed": ("UINT64", lambda value: struct.pack("<Q", value)),
}


def asked(id: str = "", **inputs: Any) -> pb.ModelInferRequest:
    """All inputs raw, as stock clients send them."""
    request = pb.ModelInferRequest(model_name="tiny", id=id)
    for name, value in inputs.items():
        datatype, pack = RAW[name]
        request.inputs.add(name=name, datatype=datatype, shape=[1])
        request.raw_input_contents.append(pack(value))
    return request


def outputs(response: pb.ModelInferResponse) -> dict[str, Any]:
    layouts = {"UINT32": "<I", "FP32": "<f"}
    values: dict[str, Any] = {}
    for tensor, data in zip(response.outputs, response.raw_output_contents, strict=True):
        assert list(tensor.shape) == [1]
        if tensor.datatype == "BYTES":
            assert struct.unpack_from("<I", data)[0] == len(data) - 4
            values[tensor.name] = data[4:].decode()
        else:
            values[tensor.name] = struct.unpack(layouts[tensor.datatype], data)[0]
    return values
