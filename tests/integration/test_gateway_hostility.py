"""Hostile requests: each gets a proper status, nothing breaks, nothing is left, the next valid one works.

MOEMESH_HOSTILE is how many are sent (`make test-hostile`: 10,000).
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

import grpc
import httpx
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.dispatch.frames import pack_header
from cluster.dispatch.handshake import Identity
from cluster.dispatch.kinds import Kind
from cluster.dispatch.server import FrameServer
from cluster.gateway.service import GatewayService
from protos import generation_pb2 as pb
from protos import generation_pb2_grpc
from support import hostile
from support.fake_router import FakeRouter
from support.frames import echo, serving
from support.gateways import gateway, request, wait_until

REQUESTS = int(os.environ.get("MOEMESH_HOSTILE", "300"))
CALL_S = 20.0
INTERNAL = "internal error in the gateway"

HELLO = pack_header(Kind.HELLO, Identity("gateway", "stranger", 1).to_header(), 0)
GREETING = Identity("gateway", "stranger", 1).to_header() | {"nonce": bytes(32), "sealed": True}
SUBMIT = {"n": 1, "id": "r", "kind": "generate", "prompt": 2, "sampling": {"max_tokens": 2}}
FRAMES = (
    HELLO,
    pack_header(Kind.HELLO, GREETING, 0),
    pack_header(Kind.PROOF, {"proof": bytes(32), "share": bytes(32)}, 0),
    HELLO + pack_header(Kind.SUBMIT, SUBMIT, 8) + b"\1\0\0\0\2\0\0\0",
    HELLO + pack_header(Kind.ABORT, {"n": 1}, 0),
    HELLO + pack_header(Kind.SUBMIT, {**SUBMIT, "prompt": 1 << 30}, 0xFFFFFFFF),
    HELLO + pack_header(Kind.PING, {}, 0) * 4,
)


def share(of_hundred: int) -> settings:
    return settings(
        max_examples=max(1, REQUESTS * of_hundred // 100),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@dataclass
class Server:
    service: GatewayService
    router: FakeRouter
    keyed: FrameServer
    channel: grpc.Channel
    web: httpx.Client

    def serves(self) -> None:
        """A valid request gets its tokens, and nothing of others is left."""
        stub = generation_pb2_grpc.GenerationStub(self.channel)
        parts = list(stub.Generate(request("abc", max_tokens=5), timeout=CALL_S))
        assert sum(len(part.token_ids) for part in parts) == 5
        assert parts[-1].finish.reason == pb.FINISH_REASON_LENGTH
        answer = self.web.post("/v1/completions", json={"prompt": "abc", "max_tokens": 5})
        assert answer.json()["usage"]["completion_tokens"] == 5
        wait_until(lambda: self.service.stats()["outstanding"] == 0, "all requests to be forgotten")
        wait_until(lambda: not self.router.running, "the router to have nothing to do")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with (
        FakeRouter() as router,
        gateway({"r0": router.address}, http_port=0, request_s=0.5, reader_s=5.0) as service,
        serving(echo, identity=Identity("node", "n", key=b"k" * 32)) as keyed,
        grpc.insecure_channel(service.address) as channel,
        httpx.Client(base_url=f"http://{service.http_address}", timeout=CALL_S) as web,
    ):
        yield Server(service, router, keyed, channel, web)


@pytest.fixture(autouse=True)
def _nothing_is_left(server: Server, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Files and sockets are as many as before, and no part of the gateway has met what it did not expect."""
    server.serves()
    before = psutil.Process().num_fds()
    yield
    server.serves()
    wait_until(lambda: psutil.Process().num_fds() <= before, "sockets to be closed")
    wrong = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert not wrong, f"logged as errors: {[record.getMessage() for record in wrong]}"


@share(25)
@given(hostile.calls((*hostile.UNARY, *hostile.INFER)))
def test_changed_messages_of_single_answers(server: Server, call: tuple[str, bytes]) -> None:
    method, data = call
    with _proper():
        server.channel.unary_unary(method)(data, timeout=CALL_S)


@share(20)
@given(hostile.calls(hostile.STREAMING))
def test_changed_messages_of_streams(server: Server, call: tuple[str, bytes]) -> None:
    method, data = call
    with _proper():
        list(server.channel.unary_stream(method)(data, timeout=CALL_S))


@share(10)
@given(st.lists(hostile.calls(hostile.INFER_STREAM), max_size=3))
def test_changed_messages_on_one_stream(server: Server, calls: list[tuple[str, bytes]]) -> None:
    method = hostile.INFER_STREAM[0][0]
    with _proper():
        list(server.channel.stream_stream(method)(iter([data for _, data in calls]), timeout=CALL_S))


class _proper(suppress):
    """A status is an answer, unless it says that the gateway met a bug or gave none in time."""

    def __init__(self) -> None:
        super().__init__(grpc.RpcError)

    def __exit__(self, kind, error, trace):  # type: ignore[no-untyped-def]
        if isinstance(error, grpc.RpcError):
            code, details = error.code(), str(error.details())
            assert code not in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.DEADLINE_EXCEEDED), details
            assert INTERNAL not in details
        return super().__exit__(kind, error, trace)


def test_a_broken_message_behind_a_good_one_ends_the_stream_with_a_status(server: Server) -> None:
    """Also where the answer to the good one is just being written."""
    method, good = hostile.INFER_STREAM[0]
    for _ in range(30):
        call = server.channel.stream_stream(method)(
            iter([good.SerializeToString(), b"\xff\xff"]), timeout=CALL_S
        )
        with pytest.raises(grpc.RpcError) as caught:
            list(call)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@share(25)
@given(st.sampled_from(hostile.PATHS), hostile.bodies())
def test_wrong_bodies_over_http(server: Server, path: str, body: bytes) -> None:
    answer = server.web.post(path, content=body)
    assert answer.status_code in (200, 400, 404, 413, 429), answer.text
    if answer.status_code != 200:
        assert answer.json()["error"]["message"]


@share(8)
@given(hostile.raw_bytes((hostile.GRPC_PREFACE,)), st.booleans())
def test_bytes_on_the_port_of_grpc(server: Server, data: bytes, half_close: bool) -> None:
    _throw(server.service.address, data, half_close)


@share(6)
@given(hostile.raw_bytes(hostile.HTTP_HEADS), st.booleans())
def test_bytes_on_the_port_of_http(server: Server, data: bytes, half_close: bool) -> None:
    _throw(server.service.http_address, data, half_close)


@share(6)
@given(hostile.raw_bytes(FRAMES), st.booleans(), st.booleans())
def test_bytes_on_the_ports_of_routers_and_nodes(
    server: Server, data: bytes, half_close: bool, keyed: bool
) -> None:
    """With a cluster's key to ask for, and without."""
    _throw(server.keyed.address if keyed else server.router.address, data, half_close)


def _throw(address: str, data: bytes, half_close: bool) -> None:
    """Send it, say half that it is over, or leave at once."""
    host, port = address.rsplit(":", 1)
    with socket.create_connection((host, int(port))) as sock, suppress(ConnectionError):
        sock.settimeout(0.01)
        sock.sendall(data)
        if half_close:
            sock.shutdown(socket.SHUT_WR)
        with suppress(TimeoutError):
            sock.recv(1 << 16)


def test_a_request_that_never_comes_whole_is_cut(server: Server) -> None:
    """Slow-loris: connections that send nothing, half a head, half a body, a byte now and then."""
    host, port = server.service.http_address.split(":")
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n\r\n"
    beginnings = (b"", b"GET /health HTT", head + b"{")
    socks = [socket.create_connection((host, int(port))) for _ in range(60)]
    try:
        for number, sock in enumerate(socks):
            sock.settimeout(CALL_S)
            sock.sendall(beginnings[number % len(beginnings)])
        server.serves()
        for sock in socks:
            with suppress(ConnectionError):
                while sock.recv(4096):
                    pass
    finally:
        for sock in socks:
            sock.close()


def test_streams_that_are_opened_and_left(server: Server) -> None:
    """Half-closed: a call without its message, a stream whose client says nothing more, then leaves."""
    calls = []
    for _ in range(20):
        stub = server.channel.stream_stream(hostile.INFER_STREAM[0][0])
        calls.append(stub(_silent(), timeout=CALL_S))
    for call in calls:
        call.cancel()


def _silent() -> Iterator[bytes]:
    yield from ()
