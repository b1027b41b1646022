"""Clients that we did not write, in a process and an environment of their own, against a real gateway."""

from __future__ import annotations

import json
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from cluster.gateway.service import SERVICES, GatewayService
from protos import open_inference_pb2
from support.fake_router import WIDTH, FakeRouter, logprob
from support.gateways import MODEL, gateway, wait_until

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


def test_what_the_server_tells_of_its_model(client_python: Path, address: str) -> None:
    seen = run(client_python, "run_triton.py", "about", address, MODEL)
    assert (seen["count"], seen["inferences"]) == (3, 3)
    assert seen["ns"] > 0
    assert seen["decoupled"]
    assert seen["required"] == ["text_input"]
    assert seen["output_types"]["text_output"] == open_inference_pb2.TYPE_STRING
    assert seen["index"] == [[MODEL, "1", "READY"]]
    assert "RepositoryModelLoad is not offered" in seen["sentence"]


def test_what_tritonclient_gives_up_is_ended(client_python: Path) -> None:
    with FakeRouter(paused=True) as router, gateway({"r0": router.address}) as service:
        seen = run(client_python, "run_triton.py", "cancel", service.address, MODEL)
        assert seen == {
            "deadline": "StatusCode.DEADLINE_EXCEEDED",
            "timeout": "StatusCode.DEADLINE_EXCEEDED",
            "cancelled": "StatusCode.CANCELLED",
            "stream": "StatusCode.CANCELLED",
        }
        wait_until(lambda: not router.running, "the router to hear of it")
        wait_until(lambda: service.stats()["outstanding"] == 0, "the gateway to forget them")


@pytest.fixture(scope="module")
def openai_saw(openai_python: Path, service: GatewayService) -> Any:
    return run(openai_python, "run_openai.py", "all", service.http_address, MODEL)


def test_openai(openai_saw: Any) -> None:
    seen = openai_saw["sync"]
    assert (seen["models"], seen["model"]) == ([MODEL], MODEL)
    assert (seen["chat"], seen["role"], seen["finish"]) == ("<user>", "assistant", "length")
    assert seen["chat_usage"] == {"prompt_tokens": 11, "completion_tokens": 6, "total_tokens": 17}
    assert seen["chat_logprobs"] == [logprob(i) for i in range(6)]
    assert seen["chat_tokens"] == "<user>"
    assert (seen["streamed"], seen["stream_finish"]) == ("añ漢añ漢", ["length"])
    assert seen["stream_usage"] == 6 + 12
    assert seen["several"] == [[0, "abc"], [1, "abc"], [2, "xyx"], [3, "xyx"]]
    assert seen["several_usage"] == 5 + 12
    assert seen["stopped"] == ["abc", "stop"]
    assert seen["token_logprobs"] == [logprob(0), logprob(1)]
    assert (seen["extra"], seen["seeded"]) == ("ab", "cdab")
    assert seen["request_id"].startswith("chatcmpl-")
    assert seen["embedding"] == WIDTH


def test_openai_async_streams(openai_saw: Any) -> None:
    assert openai_saw["aio"]["texts"] == [f"<user>{n}ñ<a><u" for n in range(8)]


def test_openai_sees_our_statuses(openai_saw: Any) -> None:
    assert openai_saw["errors"] == {
        "unknown_model": ["NotFoundError", 404, "not_found_error"],
        "empty_prompt": ["BadRequestError", 400, "invalid_request_error"],
        "negative": ["BadRequestError", 400, "invalid_request_error"],
        "temperature": ["BadRequestError", 400, "invalid_request_error"],
        "not_offered": ["BadRequestError", 400, "invalid_request_error"],
        "unknown_key": ["BadRequestError", 400, "invalid_request_error"],
    }


def test_what_openai_gives_up_is_ended(openai_python: Path) -> None:
    """The first stream has one token when it is closed; the second never gets one."""
    with FakeRouter(paused=True) as router, gateway({"r0": router.address}, http_port=0) as service:
        stepping = threading.Thread(target=_step_once, args=(router,))
        stepping.start()
        seen = run(openai_python, "run_openai.py", "cancel", service.http_address, MODEL)
        stepping.join()
        assert seen["first"] == "a"
        assert "Timeout" in seen["timed_out"]
        wait_until(lambda: not router.running, "the router to hear of it")
        wait_until(lambda: service.stats()["outstanding"] == 0, "the gateway to forget them")


def _step_once(router: FakeRouter) -> None:
    wait_until(lambda: len(router.running) == 1, "the first request", seconds=60)
    router.step()


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
