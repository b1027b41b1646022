"""Clients that stop reading: routers never wait for them, and what they hold is freed after a while."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import grpc
import pytest
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status

from cluster.gateway.service import GatewayService
from protos import generation_pb2 as pb
from protos import generation_pb2_grpc, open_inference_pb2, open_inference_pb2_grpc
from support.fake_router import FakeRouter
from support.gateways import MODEL, gateway, request, served_model, wait_until

TOKENS = 3000
READER_S = 0.4
SMALL_WINDOW = (("grpc.http2.bdp_probe", 0),)
"""Keeps HTTP/2's flow-control window at 64 KB: the system takes no more of an answer that nobody reads."""


@contextmanager
def serving(router: FakeRouter) -> Iterator[GatewayService]:
    served = served_model(context=2 * TOKENS)
    with gateway({"r0": router.address}, served, http_port=0, reader_s=READER_S) as service:
        yield service


def large() -> pb.GenerateRequest:
    """An answer of about 700 KB."""
    return request("abc", max_tokens=TOKENS, top_logprobs=20)


def freed(service: GatewayService) -> None:
    wait_until(lambda: service.stats()["outstanding"] == 0, "the gateway to free the request")


def test_a_stream_that_is_not_read_is_cut_with_a_typed_error() -> None:
    with (
        FakeRouter() as router,
        serving(router) as service,
        grpc.insecure_channel(service.address, options=SMALL_WINDOW) as channel,
    ):
        stream = generation_pb2_grpc.GenerationStub(channel).Generate(large())
        assert next(stream).HasField("start")
        wait_until(lambda: not router.running, "the router, which waits for nobody, to be done")
        freed(service)
        with pytest.raises(grpc.RpcError) as caught:
            list(stream)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert reason_of(caught.value) == "SlowReader"


def reason_of(error: grpc.RpcError) -> str:
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    assert status is not None
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return str(info.reason)


def test_a_reader_that_is_slow_but_reads_gets_everything() -> None:
    with (
        FakeRouter() as router,
        serving(router) as service,
        grpc.insecure_channel(service.address, options=SMALL_WINDOW) as channel,
    ):
        stream = generation_pb2_grpc.GenerationStub(channel).Generate(large())
        pause, tokens = threading.Event(), 0
        for number, part in enumerate(stream):
            tokens += len(part.token_ids)
            if number % 100 == 0:
                pause.wait(READER_S / 10)
        assert tokens == TOKENS


def test_the_work_of_an_unread_stream_stops_at_its_router() -> None:
    """It was asked for more than is ever generated: what ends it is the cut."""
    with (
        FakeRouter() as router,
        gateway({"r0": router.address}, served_model(context=1_000_000), reader_s=READER_S) as service,
        grpc.insecure_channel(service.address, options=SMALL_WINDOW) as channel,
    ):
        stub = generation_pb2_grpc.GenerationStub(channel)
        stream = stub.Generate(request("abc", max_tokens=900_000, top_logprobs=20))
        assert next(stream).HasField("start")
        wait_until(lambda: router.counts.aborted == [1], "the router to be told")
        freed(service)
        assert not router.running
        stream.cancel()


def test_one_unread_stream_of_the_open_protocol_is_cut() -> None:
    """A request that runs, and the answers to many that are wrong, on a stream that nobody reads."""
    with (
        FakeRouter(paused=True) as router,
        serving(router) as service,
        grpc.insecure_channel(service.address, options=SMALL_WINDOW) as channel,
    ):
        done = threading.Event()
        stub = open_inference_pb2_grpc.GRPCInferenceServiceStub(channel)
        stream = stub.ModelStreamInfer(_until(done))
        try:
            wait_until(lambda: router.counts.aborted == [1], "the one that runs to be ended")
            freed(service)
            with pytest.raises(grpc.RpcError) as caught:
                list(stream)
            assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert reason_of(caught.value) == "SlowReader"
        finally:
            done.set()


def _until(done: threading.Event) -> Iterator[open_inference_pb2.ModelInferRequest]:
    """The client keeps its side open."""
    good = open_inference_pb2.ModelInferRequest(model_name=MODEL)
    tensor = good.inputs.add(name="text_input", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(b"abc")
    yield good
    for _ in range(300):
        yield open_inference_pb2.ModelInferRequest(model_name="x" * 1000)
    done.wait(20)


def test_events_that_are_not_read_are_cut() -> None:
    with FakeRouter() as router, serving(router) as service:
        body = {"model": MODEL, "prompt": "abc", "max_tokens": TOKENS, "stream": True, "logprobs": 5, "n": 8}
        with _posted(service, json.dumps(body).encode()) as sock:
            assert sock.recv(20).startswith(b"HTTP/1.1 200")
            wait_until(lambda: router.counts.submitted, "the request")
            freed(service)
            assert b"[DONE]" not in _rest(sock)


def _rest(sock: socket.socket) -> bytes:
    """Until the connection ends, one way or the other."""
    data = b""
    with suppress(ConnectionResetError):
        while more := sock.recv(1 << 20):
            data += more
    return data


@contextmanager
def _posted(service: GatewayService, body: bytes) -> Iterator[socket.socket]:
    host, port = service.http_address.split(":")
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect((host, int(port)))
        sock.settimeout(20)
        head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
        sock.sendall(head.encode() + body)
        yield sock
