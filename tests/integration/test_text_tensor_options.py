"""Stop words, penalties, priorities and grammars as tensors and as keys of `sampling_parameters`."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from cluster.gateway.text_tensors import read_request
from cluster.types import Grammar
from protos import open_inference_pb2 as pb
from protos import open_inference_pb2_grpc
from support.fake_router import FakeRouter
from support.gateways import gateway

Stub = open_inference_pb2_grpc.GRPCInferenceServiceStub


def framed(*texts: str) -> bytes:
    return b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in texts)


def asked(raw: dict[str, tuple[str, list[int], bytes]], parameters: Any = None) -> pb.ModelInferRequest:
    """raw: datatype, shape and bytes by name; the text is "abcd"."""
    request = pb.ModelInferRequest(model_name="tiny")
    tensors = {"text_input": ("BYTES", [1], framed("abcd")), **raw}
    if parameters is not None:
        tensors["sampling_parameters"] = ("BYTES", [1], framed(json.dumps(parameters)))
    for name, (datatype, shape, data) in tensors.items():
        request.inputs.add(name=name, datatype=datatype, shape=shape)
        request.raw_input_contents.append(data)
    return request


@pytest.fixture(scope="module")
def router() -> Iterator[FakeRouter]:
    with FakeRouter() as running:
        yield running


@pytest.fixture(scope="module")
def stub(router: FakeRouter) -> Iterator[Stub]:
    with gateway({"r0": router.address}) as service, grpc.insecure_channel(service.address) as channel:
        yield Stub(channel)


def text_of(response: pb.ModelInferResponse) -> str:
    place = [output.name for output in response.outputs].index("text_output")
    return response.raw_output_contents[place][4:].decode()


@pytest.mark.parametrize("shape", [[2], [1, 2]])
def test_stop_words_end_the_text(stub: Stub, shape: list[int]) -> None:
    request = asked({"stop_words": ("BYTES", shape, framed("zz", "da"))})
    assert text_of(stub.ModelInfer(request)) == "abc"


def test_stop_words_may_be_typed_and_none(stub: Stub) -> None:
    request = pb.ModelInferRequest(model_name="tiny")
    text = request.inputs.add(name="text_input", datatype="BYTES", shape=[1])
    text.contents.bytes_contents.append(b"abcd")
    words = request.inputs.add(name="stop_words", datatype="BYTES", shape=[1])
    words.contents.bytes_contents.append(b"cd")
    assert text_of(stub.ModelInfer(request)) == "ab"
    del words.contents.bytes_contents[:]
    words.shape[:] = [0]
    assert len(text_of(stub.ModelInfer(request))) == 64


@pytest.mark.parametrize(
    ("shape", "data", "says"),
    [
        ([3], framed("a", "b"), "must agree"),
        ([1, 1, 1], framed("a"), r"\[n\]"),
        ([-1], framed("a"), r"\[n\]"),
        ([1], framed("abc")[:-1], "end within element 0"),
        ([2], framed("a") + b"\1\0", "end within element 1"),
        ([1], struct.pack("<I", 1) + b"\xff", "UTF-8"),
        ([1], framed(""), "stop"),
        ([17], framed(*"abcdefghijklmnopq"), "at most 16"),
    ],
)
def test_broken_stop_words_are_named(stub: Stub, shape: list[int], data: bytes, says: str) -> None:
    with pytest.raises(grpc.RpcError, match=says) as caught:
        stub.ModelInfer(asked({"stop_words": ("BYTES", shape, data)}))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_new_scalars_reach_the_router(stub: Stub, router: FakeRouter) -> None:
    tensors = {
        "presence_penalty": ("FP32", [1], struct.pack("<f", 0.5)),
        "frequency_penalty": ("FP32", [1], struct.pack("<f", -0.25)),
        "priority": ("INT32", [1], struct.pack("<i", 7)),
    }
    stub.ModelInfer(asked(tensors))
    got = router.counts.submitted[-1].asked
    assert (got.sampling.presence_penalty, got.sampling.frequency_penalty, got.priority) == (0.5, -0.25, 7)


@pytest.mark.parametrize("schema", [{"type": "null"}, '{"type": "null"}'])
def test_a_schema_may_come_as_json_or_as_text(schema: Any) -> None:
    wishes = read_request(asked({}, {"json_schema": schema, "stop": "x"})).wishes
    assert wishes.grammar == Grammar("json_schema", '{"type": "null"}')
    assert wishes.stop == ("x",)
    assert read_request(asked({}, {"regex": "a+", "stop": ["x", "y"]})).wishes.stop == ("x", "y")


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"stop": [1]}, "stop must be a list of strings"),
        ({"json_schema": [1]}, "json_schema must be a string"),
        ({"regex": 5}, "regex must be a string"),
        ({"regex": "a", "lark": "start: a"}, "one of json_schema, regex, lark"),
        ({"n": 2}, "unknown key 'n'"),
        ({"presence_penalty": "much"}, "presence_penalty is 'much'"),
        ({"presence_penalty": 3}, "presence_penalty is 3"),
    ],
)
def test_a_bad_key_is_named(stub: Stub, parameters: dict[str, Any], says: str) -> None:
    with pytest.raises(grpc.RpcError, match=says) as caught:
        stub.ModelInfer(asked({}, parameters))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
