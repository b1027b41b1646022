"""Clients that we did not write, in a process and an environment of their own, against a real gateway."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cluster.gateway.service import SERVICES
from protos import open_inference_pb2
from support.gateways import MODEL

pytestmark = [pytest.mark.clients, pytest.mark.timeout(600)]
HERE = Path(__file__).parent


def run(python: Path, script: str, *arguments: str) -> Any:
    command = [str(python), str(HERE / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{script} {arguments} failed:\n{done.stderr[-3000:]}"
    return json.loads(done.stdout)


def test_tritonclient(client_python: Path, address: str) -> None:
    seen = run(client_python, "run_triton.py", "sync", address, MODEL)
    assert seen["live"]
    assert seen["ready"]
    assert seen["model_ready"]
    assert (seen["server"], seen["id"]) == ("moemesh", "r1")
    assert "text_input" in seen["inputs"]
    assert seen["answer"]["text_output"] == "añañ"
    assert seen["answer"]["finish_reason"] == "length"
    assert (seen["answer"]["num_input_tokens"], seen["answer"]["num_output_tokens"]) == (3, 6)
    assert seen["answer"]["cumulative_logprob"] < 0
    assert seen["sampled"]["text_output"] == "cdab"
    assert seen["one_output"] == {"text_output": "aba"}
    assert seen["with_deadline"]["text_output"] == "aba"


def test_tritonclient_aio(client_python: Path, address: str) -> None:
    seen = run(client_python, "run_triton.py", "aio", address, MODEL)
    assert seen["ready"]
    assert seen["texts"] == [f"{n}ñ" * 3 + str(n) for n in range(8)]


def test_tritonclient_stream(client_python: Path, address: str) -> None:
    seen = run(client_python, "run_triton.py", "stream", address, MODEL)
    assert seen["texts"] == {"one": "añ漢" * 2, "two": "xyz" * 4}
    assert seen["empty_finals"] == 2
    assert "max_tokens" in seen["error"]
    assert seen["after_error"] == "aba"
    assert seen["good_error"] is None


def test_tritonclient_aio_stream(client_python: Path, address: str) -> None:
    seen = run(client_python, "run_triton.py", "aio_stream", address, MODEL)
    assert seen["texts"] == {str(n): f"{n}漢" * 2 for n in range(4)}


def test_tritonclient_sees_our_status_codes(client_python: Path, address: str) -> None:
    assert run(client_python, "run_triton.py", "errors", address, MODEL) == {
        "unknown_model": "StatusCode.NOT_FOUND",
        "wrong_shape": "StatusCode.INVALID_ARGUMENT",
        "empty_prompt": "StatusCode.INVALID_ARGUMENT",
        "negative": "StatusCode.INVALID_ARGUMENT",
        "temperature": "StatusCode.INVALID_ARGUMENT",
        "not_offered": "StatusCode.UNIMPLEMENTED",
    }


def test_our_messages_have_the_clients_field_numbers(client_python: Path, address: str) -> None:
    """Every field that we declare, in every message, has the number and type that the client compiled in."""
    theirs = run(client_python, "run_triton.py", "descriptors", address, MODEL)
    ours: dict[str, dict[str, list[int]]] = {}
    pending = list(open_inference_pb2.DESCRIPTOR.message_types_by_name.values())
    while pending:
        message = pending.pop()
        ours[message.full_name] = {f.name: [f.number, f.type] for f in message.fields}
        pending.extend(message.nested_types)
    assert len(ours) > 15
    for name, fields in ours.items():
        missing = {f: spec for f, spec in fields.items() if theirs[name].get(f) != spec}
        assert not missing, f"{name} differs from the public protocol in {missing}"


def test_a_client_that_knows_only_the_address(client_python: Path, address: str) -> None:
    seen = run(client_python, "run_reflection.py", address)
    assert {*SERVICES, "grpc.health.v1.Health"} <= set(seen["services"])
    assert seen["text"] == "añañ"
    assert seen["reason"] == "FINISH_REASON_LENGTH"
    assert seen["health"] == "SERVING"
    assert seen["ready"] is True
