"""A body of many prompts is one request to its key's limits, whatever it has the cluster do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from cluster.gateway.security import keys
from cluster.gateway.security.keys import Scope
from support.fake_router import FakeRouter
from support.gateways import wait_until
from support.http import complete, serving

WHEN = "2026-11-22T10:00:00+00:00"
PROMPTS = [f"{number:04}" for number in range(64)]


@contextmanager
def limited(router: FakeRouter, folder: Path, **limits: int) -> Iterator[httpx.Client]:
    """A client whose key has these limits."""
    key, record = keys.create("ann", [Scope.infer], WHEN, **limits)
    keys.write(folder / "keys.json", [record])
    with serving(router, keys=str(folder / "keys.json")) as (service, client):
        client.headers["authorization"] = f"Bearer {key}"
        yield client
        wait_until(lambda: service.stats()["outstanding"] == 0, "the gateway to be done")


def embed(client: httpx.Client, count: int) -> httpx.Response:
    return client.post("/v1/embeddings", json={"input": PROMPTS[:count]})


def test_many_inputs_are_one_request_at_a_time(tmp_path: Path) -> None:
    with FakeRouter() as router, limited(router, tmp_path, concurrent=1) as client:
        for _ in range(2):  # what was taken is given back
            assert len(embed(client, 64).json()["data"]) == 64
            assert len(complete(client, prompt=PROMPTS[:8], n=2, max_tokens=2).json()["choices"]) == 16
            with client.stream("POST", "/v1/completions", json={"prompt": ["a", "b"], "stream": True}) as it:
                assert it.status_code == 200
                assert it.read().endswith(b"[DONE]\n\n")


def test_many_inputs_are_one_request_of_a_rate(tmp_path: Path) -> None:
    with FakeRouter() as router, limited(router, tmp_path, requests_per_minute=6) as client:
        assert len(embed(client, 64).json()["data"]) == 64
        for response in (embed(client, 2), complete(client, prompt=["a", "b"]), complete(client)):
            assert (response.status_code, response.json()["error"]["code"]) == (429, "RateLimited")


@pytest.mark.parametrize("prompts", [["a"], ["a", "b"]])
def test_while_a_body_runs_it_holds_its_place(tmp_path: Path, prompts: list[str]) -> None:
    with FakeRouter(paused=True) as router, limited(router, tmp_path, concurrent=1) as client:
        body = {"prompt": prompts, "max_tokens": 2, "stream": True}
        with client.stream("POST", "/v1/completions", json=body):
            wait_until(lambda: len(router.running) == len(prompts), "the first")
            assert embed(client, len(prompts)).status_code == 429
        wait_until(lambda: not router.running, "the router to be told")
        router.resume()
        wait_until(lambda: embed(client, 2).status_code == 200, "its place to be free")


def test_a_body_that_is_refused_leaves_nothing(tmp_path: Path) -> None:
    with FakeRouter() as router, limited(router, tmp_path, concurrent=1) as client:
        for _ in range(2):
            assert complete(client, prompt=["a", "b"], tier="exact", request_id="x" * 127).status_code == 400
            assert complete(client, prompt=["a"] * 64, n=64).status_code == 429  # too many for the line
        assert embed(client, 2).status_code == 200
