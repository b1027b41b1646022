"""The contract with clients: generated code is current, numbers of the public protocol are kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from protos import admin_pb2, generation_pb2, open_inference_pb2
from protos import compile as protos_compile

GENERATED = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("protos")
    protos_compile.compile_protos(out)
    return out / "protos"


@pytest.mark.parametrize("suffix", GENERATED)
@pytest.mark.parametrize("source", [path.stem for path in protos_compile.sources()])
def test_generated_files_are_current(fresh: Path, source: str, suffix: str) -> None:
    kept = protos_compile.HERE / (source + suffix)
    assert kept.read_text() == (fresh / kept.name).read_text(), (
        "help: run `make protos` and commit the result"
    )


def fields(message: type) -> dict[str, int]:
    return {field.name: field.number for field in message.DESCRIPTOR.fields}


def test_open_inference_keeps_the_public_numbers() -> None:
    """Literal numbers: a wrong one here is a client that silently reads nothing."""
    pb = open_inference_pb2
    assert fields(pb.ModelInferRequest) == {
        "model_name": 1,
        "model_version": 2,
        "id": 3,
        "parameters": 4,
        "inputs": 5,
        "outputs": 6,
        "raw_input_contents": 7,
    }
    tensor = {"name": 1, "datatype": 2, "shape": 3, "parameters": 4, "contents": 5}
    assert fields(pb.ModelInferRequest.InferInputTensor) == tensor
    assert fields(pb.ModelInferResponse.InferOutputTensor) == tensor
    assert fields(pb.ModelInferResponse)["raw_output_contents"] == 6
    assert fields(pb.ModelStreamInferResponse) == {"error_message": 1, "infer_response": 2}
    assert list(fields(pb.InferTensorContents).values()) == list(range(1, 9))
    assert fields(pb.InferParameter) == {
        "bool_param": 1,
        "int64_param": 2,
        "string_param": 3,
        "double_param": 4,
        "uint64_param": 5,
    }


def test_services_have_the_agreed_names() -> None:
    inference = open_inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    assert inference.full_name == "inference.GRPCInferenceService"
    assert set(inference.methods_by_name) == {
        "ServerLive",
        "ServerReady",
        "ModelReady",
        "ServerMetadata",
        "ModelMetadata",
        "ModelInfer",
        "ModelStreamInfer",
        "ModelConfig",
        "ModelStatistics",
        "RepositoryIndex",
    }
    generation = generation_pb2.DESCRIPTOR.services_by_name["Generation"]
    assert generation.full_name == "moemesh.v1.Generation"
    assert set(generation.methods_by_name) == {
        *("Generate", "Chat", "Score", "Embed", "Tokenize", "Detokenize", "GetModel", "Abort"),
    }


def test_the_admin_service_has_the_agreed_methods() -> None:
    admin = admin_pb2.DESCRIPTOR.services_by_name["Admin"]
    assert admin.full_name == "moemesh.v1.Admin"
    assert set(admin.methods_by_name) == {
        *("GetPlacement", "GetStats", "Watch", "Drain", "Undrain", "Rebalance"),
        *("GetTierPolicy", "SetTierPolicy"),
    }


def test_a_request_can_be_named_and_resumed() -> None:
    assert fields(generation_pb2.GenerateRequest)["request_id"] == 7
    assert fields(generation_pb2.GenerateRequest)["resume_from"] == 8
    assert fields(generation_pb2.GenerateRequest)["resume_window_s"] == 10
