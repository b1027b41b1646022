"""HTTP clients that leave, stop half-way, come too many at once, or are there at a shutdown."""

from __future__ import annotations

import contextlib
import json
import socket
import time

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.config import GatewayConfig
from cluster.errors import NodeLost, PortInUse
from cluster.gateway.service import GatewayService
from support.fake_router import FakeRouter
from support.gateways import gateway, served_model, wait_until
from support.http import GREEDY, complete, events, serving, streamed, text_of, web


def test_a_body_beyond_the_limit_is_not_read_to_its_end(router: FakeRouter) -> None:
    with serving(router, max_message_bytes=1000) as (_, client):
        assert complete(client, prompt="x" * 2000).status_code == 413
        assert complete(client, max_tokens=1).status_code == 200


@pytest.mark.parametrize(
    "begun",
    [
        b"",
        b"POST /v1/completions HT",
        b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{",
    ],
)
def test_a_request_that_does_not_come_to_its_end_is_cut(begun: bytes) -> None:
    with gateway({}, http_port=0, request_s=0.2) as service:
        host, port = service.http_address.split(":")
        with socket.create_connection((host, int(port)), timeout=20) as sock:
            sock.sendall(begun)
            with contextlib.suppress(ConnectionResetError):
                while sock.recv(4096):
                    pass


@given(
    data=st.binary(max_size=200)
    | st.binary(max_size=60).map(lambda x: b"POST /v1/completions HTTP/1.1\r\n" + x)
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_raw_bytes_do_no_harm(client: httpx.Client, data: bytes) -> None:
    with socket.create_connection((client.base_url.host, client.base_url.port or 0), timeout=20) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            answer = b""
            while more := sock.recv(4096):
                answer += more
            assert not answer or answer.startswith(b"HTTP/1.1 ")
    assert client.get("/health").status_code == 200


def test_an_answer_may_take_longer_than_its_request() -> None:
    with streamed(max_tokens=5, request_s=0.1) as (router, _, response):
        time.sleep(0.2)
        router.resume()
        assert text_of(events(response)) == "abcab"


def test_a_client_that_leaves_ends_its_stream() -> None:
    with streamed(max_tokens=50) as (router, service, response):
        router.step()
        assert "abc"[0] in next(response.iter_text())
        response.close()
        wait_until(lambda: not router.running, "the router to hear of it")
        wait_until(lambda: service.stats()["outstanding"] == 0, "the gateway to forget it")


def test_a_client_that_leaves_before_its_answer_ends_it_too() -> None:
    with FakeRouter(paused=True) as router, serving(router) as (service, client):
        with pytest.raises(httpx.ReadTimeout):
            client.post("/v1/completions", json={**GREEDY, "prompt": "abc", "max_tokens": 50}, timeout=0.3)
        wait_until(lambda: router.counts.submitted and not router.running, "the router to hear of it")
        wait_until(lambda: service.stats()["outstanding"] == 0, "the gateway to forget it")


def test_an_error_in_a_stream_is_an_event() -> None:
    with streamed(max_tokens=50) as (router, _, response):
        router.fail_running(NodeLost("node n1 is gone"))
        (line,) = [line for line in response.iter_lines() if line]
        error = json.loads(line.removeprefix("data: "))["error"]
        assert (error["message"], error["code"]) == ("node n1 is gone", "NodeLost")


def test_a_full_queue_is_429_with_a_hint() -> None:
    with FakeRouter(paused=True) as router, serving(router, window=1, max_queued=0) as (_, client):
        body = {**GREEDY, "prompt": "abc", "stream": True}
        with client.stream("POST", "/v1/completions", json=body):
            wait_until(lambda: len(router.running) == 1, "a request to wait")
            refused = complete(client)
            assert refused.status_code == 429
            assert refused.headers["retry-after"] == "1"
            assert refused.json()["error"]["type"] == "rate_limit_error"


def test_health_and_readiness() -> None:
    with gateway({}, http_port=0) as service, web(service) as client:
        assert client.get("/health").status_code == 200
        unready = client.get("/ready")
        assert (unready.status_code, unready.json()["ready"]) == (503, False)
        refused = complete(client)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    with FakeRouter() as router, serving(router) as (_, client):
        assert client.get("/ready").json() == {"ready": True, "model": "tiny", "routers": 1}


def test_a_router_that_makes_no_tokens_is_not_ready() -> None:
    with (
        FakeRouter(refuse=NodeLost("no experts")) as router,
        gateway({"r0": router.address}, http_port=0) as service,
        web(service) as client,
    ):
        wait_until(lambda: router.counts.probes > 1, "two looks")
        assert not service.ready
        assert client.get("/ready").status_code == 503


def test_shutdown_lets_a_stream_end() -> None:
    with streamed(max_tokens=5) as (router, service, response):
        router.resume()
        service.shutdown(grace_s=10.0)
        assert text_of(events(response)) == "abcab"


def test_shutdown_cuts_what_does_not_end() -> None:
    with streamed(max_tokens=5) as (router, service, response):
        service.shutdown(grace_s=0.0)
        with pytest.raises(httpx.HTTPError):
            list(response.iter_lines())
        wait_until(lambda: not router.running, "the router to be told")


def test_a_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        service = GatewayService(GatewayConfig(port=0, http_port=port), served_model())
        with pytest.raises(PortInUse, match=str(port)):
            service.start()
