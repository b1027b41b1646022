"""Clients that we did not write, where a test needs a router that misbehaves or a chat template: against a
gateway over a scripted router. All else is in test_clients_of_a_cluster.py."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from cluster.gateway.service import GatewayService
from protos import open_inference_pb2
from support.fake_router import FakeRouter, logprob
from support.gateways import MODEL, gateway, wait_until
from support.scripts import run

pytestmark = [pytest.mark.clients, pytest.mark.timeout(600)]


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


def test_openai_chats(openai_python: Path, service: GatewayService) -> None:
    seen = run(openai_python, "run_openai.py", "chat", service.http_address, MODEL)
    assert (seen["chat"], seen["role"], seen["finish"]) == ("<user>", "assistant", "length")
    assert seen["chat_usage"] == {"prompt_tokens": 11, "completion_tokens": 6, "total_tokens": 17}
    assert seen["chat_logprobs"] == [logprob(i) for i in range(6)]
    assert seen["chat_tokens"] == "<user>"
    assert seen["request_id"].startswith("chatcmpl-")
    assert seen["texts"] == [f"<user>{n}ñ<a><u" for n in range(8)]


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
