"""A gateway's HTTP side for tests: its address as a client wants it, events as objects."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from cluster.gateway.service import GatewayService
from support.fake_router import FakeRouter
from support.gateways import gateway, wait_until


@contextmanager
def web(service: GatewayService, **options: Any) -> Iterator[httpx.Client]:
    """A client of a gateway that offers HTTP."""
    with httpx.Client(base_url=f"http://{service.http_address}", timeout=20, **options) as client:
        yield client


@contextmanager
def serving(router: FakeRouter, **config: Any) -> Iterator[tuple[GatewayService, httpx.Client]]:
    """A gateway in front of `router` that has proven that it is ready, and a client of it."""
    with gateway({"r0": router.address}, http_port=0, **config) as service, web(service) as client:
        wait_until(lambda: service.ready, "the gateway to be ready")
        yield service, client


def events(response: httpx.Response) -> list[Any]:
    """Of a stream that has ended with [DONE]."""
    lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def text_of(chunks: list[Any]) -> str:
    """What a stream of completions wrote, of choice 0."""
    return "".join(c["text"] for chunk in chunks for c in chunk["choices"] if c["index"] == 0)


GREEDY = {"model": "tiny", "temperature": 0}


def complete(client: httpx.Client, **fields: Any) -> httpx.Response:
    return client.post("/v1/completions", json={**GREEDY, "prompt": "abc", **fields})


@contextmanager
def streamed(max_tokens: int, **config: Any) -> Iterator[tuple[FakeRouter, GatewayService, httpx.Response]]:
    """A streamed completion of "abc" that a paused router has and has not begun."""
    body = {**GREEDY, "prompt": "abc", "max_tokens": max_tokens, "stream": True}
    with (
        FakeRouter(paused=True) as router,
        serving(router, **config) as (service, client),
        client.stream("POST", "/v1/completions", json=body) as response,
    ):
        wait_until(lambda: len(router.running) == 1, "the request")
        yield router, service, response


def chat(client: httpx.Client, **fields: Any) -> httpx.Response:
    messages = [{"role": "user", "content": "hi"}]
    return client.post("/v1/chat/completions", json={**GREEDY, "messages": messages, **fields})
