"""The open inference protocol with our own generated code; stock clients are in tests/clients."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from cluster.errors import NodeLost
from protos import open_inference_pb2 as pb
from support.fake_router import FakeRouter, logprob
from support.gateways import gateway, wait_until
from support.open_inference import Stub, asked, outputs, stub_of


@pytest.fixture
def router() -> Iterator[FakeRouter]:
    with FakeRouter() as running:
        yield running


@pytest.fixture
def stub(router: FakeRouter) -> Iterator[Stub]:
    with stub_of(router) as made:
        yield made


def test_the_server_is_live_ready_and_known_by_name(stub: Stub) -> None:
    assert stub.ServerLive(pb.ServerLiveRequest()).live
    assert stub.ServerReady(pb.ServerReadyRequest()).ready
    assert stub.ModelReady(pb.ModelReadyRequest(name="tiny", version="1")).ready
    assert stub.ServerMetadata(pb.ServerMetadataRequest()).name == "moemesh"
    metadata = stub.ModelMetadata(pb.ModelMetadataRequest(name="tiny"))
    assert (metadata.name, list(metadata.versions)) == ("tiny", ["1"])
    assert {"text_input", "sampling_parameters", "stream"} < {tensor.name for tensor in metadata.inputs}
    assert {"text_output", "finish_reason"} < {tensor.name for tensor in metadata.outputs}


@pytest.mark.parametrize("call", ["ModelReady", "ModelMetadata", "ModelInfer"])
def test_an_unknown_model_is_not_found(stub: Stub, call: str) -> None:
    request = {
        "ModelReady": pb.ModelReadyRequest(name="gpt"),
        "ModelMetadata": pb.ModelMetadataRequest(name="gpt"),
        "ModelInfer": pb.ModelInferRequest(model_name="gpt"),
    }[call]
    with pytest.raises(grpc.RpcError) as caught:
        getattr(stub, call)(request)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_infer_answers_with_all_outputs(stub: Stub) -> None:
    response = stub.ModelInfer(asked(id="7", text_input="añ", max_tokens=6))
    assert (response.model_name, response.model_version, response.id) == ("tiny", "1", "7")
    values = outputs(response)
    assert values.pop("cumulative_logprob") == sum(logprob(i) for i in range(6))
    assert values == {
        "text_output": "añañ",
        "finish_reason": "length",
        "num_input_tokens": 3,
        "num_output_tokens": 6,
    }


def test_typed_contents_and_wider_types_are_read(stub: Stub, router: FakeRouter) -> None:
    request = pb.ModelInferRequest(model_name="tiny")
    text = request.inputs.add(name="text_input", datatype="BYTES", shape=[1, 1])
    text.contents.bytes_contents.append(b"ab")
    request.inputs.add(name="max_tokens", datatype="INT64", shape=[1]).contents.int64_contents.append(3)
    request.inputs.add(name="top_p", datatype="FP64", shape=[1]).contents.fp64_contents.append(0.9)
    request.inputs.add(name="ignore_eos", datatype="BOOL", shape=[1]).contents.bool_contents.append(True)
    assert outputs(stub.ModelInfer(request))["text_output"] == "aba"
    sampling = router.counts.submitted[0].sampling
    assert (sampling["top_p"], sampling["ignore_eos"]) == (0.9, True)


def test_sampling_parameters_are_json_and_scalars_go_first(stub: Stub, router: FakeRouter) -> None:
    parameters = {"temperature": "0.5", "top_k": 3, "seed": 1, "max_tokens": 9, "stop_token_ids": [7]}
    request = asked(text_input="abcd", sampling_parameters=json.dumps(parameters), max_tokens=4)
    assert outputs(stub.ModelInfer(request))["text_output"] == "bcda"
    sampling = router.counts.submitted[0].sampling
    assert (sampling["temperature"], sampling["top_k"], sampling["stop_token_ids"]) == (0.5, 3, [7])


def test_only_the_outputs_asked_for_are_sent(stub: Stub) -> None:
    request = asked(text_input="ab", max_tokens=1)
    request.outputs.add(name="num_output_tokens")
    request.outputs.add(name="text_output")
    response = stub.ModelInfer(request)
    assert [tensor.name for tensor in response.outputs] == ["num_output_tokens", "text_output"]


def wrong(change: str) -> pb.ModelInferRequest:
    request = asked(text_input="ab", max_tokens=1)
    first = request.inputs[0]
    match change:
        case "shape [2]":
            first.shape[:] = [2]
        case "shape []":
            first.shape[:] = []
        case "shape [1, 1, 1]":
            first.shape[:] = [1, 1, 1]
        case "datatype":
            first.datatype = "FP32"
        case "no datatype":
            first.datatype = ""
        case "raw too short":
            request.raw_input_contents[0] = b"\x09\0\0\0ab"
        case "raw too long":
            request.raw_input_contents[0] += b"x"
        case "raw without length":
            request.raw_input_contents[0] = b"ab"
        case "raw scalar too short":
            request.raw_input_contents[1] = b"\1"
        case "one raw missing":
            del request.raw_input_contents[1]
        case "no contents":
            del request.raw_input_contents[:]
        case "not UTF-8":
            request.raw_input_contents[0] = struct.pack("<I", 1) + b"\xff"
        case "unknown input":
            first.name = "prompt"
        case "input twice":
            request.inputs[1].name = "text_input"
            request.inputs[1].datatype = "BYTES"
        case "unknown output":
            request.outputs.add(name="logits")
        case "unknown parameter":
            request.parameters["sequence_id"].int64_param = 4
        case "parameter type":
            request.parameters["triton_enable_empty_final_response"].int64_param = 1
        case _:
            raise AssertionError(change)
    return request


@pytest.mark.parametrize(
    "change",
    [
        "shape [2]",
        "shape []",
        "shape [1, 1, 1]",
        "datatype",
        "no datatype",
        "raw too short",
        "raw too long",
        "raw without length",
        "raw scalar too short",
        "one raw missing",
        "no contents",
        "not UTF-8",
        "unknown input",
        "input twice",
        "unknown output",
        "unknown parameter",
        "parameter type",
    ],
)
def test_a_malformed_request_is_an_invalid_argument(stub: Stub, change: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(wrong(change))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    "inputs",
    [
        {"text_input": ""},
        {"max_tokens": 4},
        {"text_input": "a", "max_tokens": -1},
        {"text_input": "a", "temperature": -0.5},
        {"text_input": "a", "stream": True},
        {"text_input": "a", "sampling_parameters": "{"},
        {"text_input": "a", "sampling_parameters": "[]"},
        {"text_input": "a", "sampling_parameters": '{"best_of": 2}'},
        {"text_input": "a", "sampling_parameters": '{"top_k": 1.5}'},
        {"text_input": "a", "sampling_parameters": '{"top_p": "high"}'},
        {"text_input": "a", "sampling_parameters": '{"ignore_eos": 1}'},
        {"text_input": "a", "sampling_parameters": '{"stop_token_ids": "7"}'},
        {"text_input": "a", "sampling_parameters": '{"temperature": null}'},
    ],
)
def test_a_bad_value_is_an_invalid_argument(stub: Stub, inputs: dict[str, Any]) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(asked(**inputs))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_an_answer_that_failed_has_sent_no_tokens() -> None:
    with (
        FakeRouter(paused=True) as router,
        gateway({"r0": router.address}) as service,
        grpc.insecure_channel(service.address) as channel,
    ):
        call = Stub(channel).ModelInfer.future(asked(text_input="ab", max_tokens=4))
        wait_until(lambda: len(router.running) == 1, "the request")
        router.step()
        router.fail_running(NodeLost("node n1 is gone"))
        assert call.code() is grpc.StatusCode.UNAVAILABLE
        assert call.details() == "node n1 is gone"


def test_the_configuration_says_what_a_client_may_send(stub: Stub) -> None:
    config = stub.ModelConfig(pb.ModelConfigRequest(name="tiny", version="1")).config
    assert (config.name, config.platform, config.max_batch_size) == ("tiny", "moemesh", 0)
    assert config.model_transaction_policy.decoupled
    assert [each.name for each in config.input if not each.optional] == ["text_input"]
    types = {each.name: each.data_type for each in (*config.input, *config.output)}
    assert (types["text_output"], types["max_tokens"]) == (pb.TYPE_STRING, pb.TYPE_INT32)
    assert pb.TYPE_INVALID not in types.values()
    assert config.parameters["context"].string_value == "256"


def test_statistics_count_what_was_inferred(stub: Stub) -> None:
    (before,) = stub.ModelStatistics(pb.ModelStatisticsRequest()).model_stats
    assert (before.name, before.inference_count, before.last_inference) == ("tiny", 0, 0)
    for _ in range(2):
        stub.ModelInfer(asked(text_input="ab", max_tokens=2))
    with pytest.raises(grpc.RpcError):
        stub.ModelInfer(asked(text_input="ab", max_tokens=-1))
    (after,) = stub.ModelStatistics(pb.ModelStatisticsRequest(name="tiny")).model_stats
    assert after.inference_count == after.inference_stats.success.count == 2
    assert after.inference_stats.success.ns == after.inference_stats.compute_infer.ns > 0
    assert after.inference_stats.fail.count == 0
    assert after.last_inference > 1e12


def test_the_index_has_the_model_while_it_can_be_used(stub: Stub) -> None:
    (model,) = stub.RepositoryIndex(pb.RepositoryIndexRequest(ready=True)).models
    assert (model.name, model.version, model.state) == ("tiny", "1", "READY")
    with pytest.raises(grpc.RpcError, match="one repository"):
        stub.RepositoryIndex(pb.RepositoryIndexRequest(repository_name="other"))
    with gateway({}) as service, grpc.insecure_channel(service.address) as channel:
        lonely = Stub(channel)
        assert not lonely.RepositoryIndex(pb.RepositoryIndexRequest(ready=True)).models
        (model,) = lonely.RepositoryIndex(pb.RepositoryIndexRequest()).models
        assert model.state == "UNAVAILABLE"
        assert not lonely.ServerReady(pb.ServerReadyRequest()).ready


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("RepositoryModelLoad", "one model"),
        ("SystemSharedMemoryRegister", "travel in the messages"),
        ("TraceSetting", "tracing"),
        ("Anything", "reflection"),
    ],
)
def test_what_is_not_offered_says_why(method: str, words: str) -> None:
    with gateway({}) as service, grpc.insecure_channel(service.address) as channel:
        call = channel.unary_unary(f"/inference.GRPCInferenceService/{method}")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"\xff")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert f"{method} is not offered" in caught.value.details()
    assert words in caught.value.details()
