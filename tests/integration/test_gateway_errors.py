"""Every bad request has its code; routers come and go; overload is refused early."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from cluster.config import GatewayConfig
from cluster.dispatch import frames
from cluster.dispatch.kinds import Kind
from cluster.errors import ClusterError, Overloaded, PortInUse
from cluster.gateway.served import ServedModel
from cluster.gateway.service import GatewayService
from protos import generation_pb2 as pb
from protos import generation_pb2_grpc
from support import open_inference
from support.fake_router import FakeRouter
from support.gateways import gateway, generation_stub, request, served_model, wait_until
from support.http import web

Stub = generation_pb2_grpc.GenerationStub


@pytest.fixture(scope="module")
def stub() -> Iterator[Stub]:
    with (
        FakeRouter() as router,
        gateway({"r0": router.address}) as service,
        generation_stub(service) as running,
    ):
        yield running


def details_of(error: grpc.RpcError, kind: Any) -> Any:
    """The detail message of this type that came with the status."""
    metadata = dict(error.trailing_metadata())
    status = status_pb2.Status.FromString(metadata["grpc-status-details-bin"])
    for detail in status.details:
        message = kind()
        if detail.Unpack(message):
            return message
    raise AssertionError(f"no {kind.__name__} among the details")


def refusal(stub: Stub, asked: pb.GenerateRequest) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.Generate(asked))
    return caught.value


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"text": ""}, "prompt is empty"),
        ({"token_ids": pb.TokenIds()}, "prompt is empty"),
        ({"token_ids": pb.TokenIds(ids=[256])}, "0..255"),
        ({"text": "x" * 256}, "at most 255 fit"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_k": -2}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"min_p": 2.0}, "min_p"),
        ({"repetition_penalty": 0.0}, "repetition_penalty"),
        ({"stop_token_ids": [300]}, "stop_token_ids"),
        ({"tier": "lowbit"}, "tier"),
        ({"request_id": "x" * 200}, "request_id"),
        ({"resume_from": 2, "temperature": 1.0}, "seed"),
    ],
)
def test_a_bad_request_is_an_invalid_argument(stub: Stub, fields: dict[str, Any], names: str) -> None:
    error = refusal(stub, request(**fields))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert names in error.details()
    assert "\n" not in error.details()
    info = details_of(error, error_details_pb2.ErrorInfo)
    assert (info.reason, info.domain, info.metadata["emitted"]) == ("InvalidRequest", "moemesh", "0")


def test_a_request_without_a_prompt_is_refused(stub: Stub) -> None:
    assert refusal(stub, pb.GenerateRequest()).code() is grpc.StatusCode.INVALID_ARGUMENT


def test_an_unknown_model_is_not_found(stub: Stub) -> None:
    for call in (
        lambda: list(stub.Generate(request(model="gpt"))),
        lambda: stub.Score(pb.ScoreRequest(model="gpt", text="a")),
        lambda: stub.Tokenize(pb.TokenizeRequest(model="gpt", text="a")),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert "gpt" in caught.value.details()


def test_other_calls_refuse_bad_input_too(stub: Stub) -> None:
    for call in (
        lambda: stub.Score(pb.ScoreRequest()),
        lambda: stub.Score(pb.ScoreRequest(text="x" * 257)),
        lambda: stub.Tokenize(pb.TokenizeRequest(text="")),
        lambda: stub.Abort(pb.AbortRequest()),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            call()
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_messages_need_a_template() -> None:
    with (
        FakeRouter() as router,
        gateway({"r0": router.address}, served_model(template=False)) as service,
        generation_stub(service) as stub,
    ):
        assert not stub.Tokenize(pb.TokenizeRequest(text="a")).chat_template
        with pytest.raises(grpc.RpcError) as caught:
            list(stub.Chat(pb.ChatRequest(messages=[pb.ChatMessage(role="user", content="hi")])))
        error = caught.value
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "no chat template" in error.details()


def test_a_running_request_id_cannot_be_taken() -> None:
    with (
        FakeRouter(paused=True) as router,
        gateway({"r0": router.address}) as service,
        generation_stub(service) as stub,
    ):
        first = stub.Generate(request(request_id="mine"))
        wait_until(lambda: len(router.running) == 1, "the first")
        error = refusal(stub, request(request_id="mine"))
        first.cancel()
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "'mine' is running" in error.details()


def test_a_full_queue_is_refused_with_a_retry_hint() -> None:
    with (
        FakeRouter(paused=True) as router,
        gateway({"r0": router.address}, window=2, max_queued=2) as service,
        generation_stub(service) as stub,
    ):
        streams = [stub.Generate(request(max_tokens=3)) for _ in range(4)]
        wait_until(lambda: service.stats()["queued"] == 4, "two at the router and two in the line")
        wait_until(lambda: len(router.running) == 2, "them to have arrived")
        error = refusal(stub, request())
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert details_of(error, error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() == 100
        router.resume()
        wait_until(lambda: service.stats()["queued"] == 0, "the line to empty")
        assert len(list(stub.Generate(request(max_tokens=1)))) >= 2
        for stream in streams:
            assert list(stream)[-1].finish.usage.completion_tokens == 3


def test_nobody_reads_a_prompt_only_to_refuse_it(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    whole = ServedModel._encode

    async def encode(self: ServedModel, text: str, special: bool) -> list[int]:
        read.append(text)
        return await whole(self, text, special)

    monkeypatch.setattr(ServedModel, "_encode", encode)
    with (
        FakeRouter(paused=True) as router,
        gateway({"r0": router.address}, http_port=0, window=1, max_queued=1) as service,
        generation_stub(service) as stub,
        grpc.insecure_channel(service.address) as channel,
        web(service) as client,
    ):
        streams = [stub.Generate(request(text)) for text in ("runs", "waits")]
        wait_until(lambda: service.stats()["queued"] == 2, "one at the router and one in the line")
        assert refusal(stub, request("refused")).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        with pytest.raises(grpc.RpcError) as caught:
            open_inference.Stub(channel).ModelInfer(open_inference.asked(text_input="refused"))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        for body in ({"prompt": ["refused", "too"]}, {"messages": [{"role": "user", "content": "refused"}]}):
            kind = "completions" if "prompt" in body else "chat/completions"
            assert client.post(f"/v1/{kind}", json={"model": "tiny", **body}).status_code == 429
        assert refusal(stub, request("many", n=1000)).code() is grpc.StatusCode.INVALID_ARGUMENT
        assert list(stub.Generate(request("nothing", max_tokens=0)))[-1].HasField("finish")
        assert sorted(read) == ["nothing", "runs", "waits"]
        for stream in streams:
            stream.cancel()


def test_an_overloaded_router_is_told_as_such() -> None:
    with (
        FakeRouter(refuse=Overloaded("full")) as router,
        gateway({"r0": router.address}) as service,
        generation_stub(service) as stub,
    ):
        error = refusal(stub, request())
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert details_of(error, error_details_pb2.RetryInfo)
        wait_until(lambda: service.stats()["outstanding"] == 0, "the gateway to forget it")


def test_without_a_router_requests_are_unavailable() -> None:
    with gateway({}) as service, generation_stub(service) as stub:
        assert not service.ready
        assert refusal(stub, request()).code() is grpc.StatusCode.UNAVAILABLE
        assert stub.Tokenize(pb.TokenizeRequest(text="ab")).token_ids  # needs none


def test_without_replays_a_lost_router_ends_its_streams_and_is_reconnected() -> None:
    with (
        FakeRouter(paused=True) as router,
        gateway({"r0": router.address}, replay_s=0.0) as service,
        generation_stub(service) as stub,
    ):
        stream = stub.Generate(request(max_tokens=9))
        wait_until(lambda: len(router.running) == 1, "the request")
        for _ in range(3):
            router.step()
        sent = 0
        while sent < 3:
            sent += len(next(stream).token_ids)
        router.kill()
        with pytest.raises(grpc.RpcError) as caught:
            list(stream)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert details_of(caught.value, error_details_pb2.ErrorInfo).metadata["emitted"] == "3"
        assert not service.ready
        assert service.stats()["outstanding"] == 0
        port = int(router.address.rpartition(":")[2])
        with FakeRouter(port=port):
            wait_until(lambda: service.ready, "the gateway to connect again")
            assert list(stub.Generate(request(max_tokens=1)))[-1].HasField("finish")


@pytest.mark.parametrize(
    "events",
    [
        [[1]],
        [[1, "t"]],
        [[1, "?", 0]],
        [[1, "s", 9]],
        [[1, "f", "stop"]],
        [[1, "x", "Unavailable"]],
        [None],
        7,
        [["1", "t", 0, 0.0], "x"],
    ],
)
def test_broken_events_end_the_connection_not_the_gateway(events: Any) -> None:
    with (
        FakeRouter(paused=True) as router,
        gateway({"r0": router.address}, replay_s=0.0) as service,
        generation_stub(service) as stub,
    ):
        stream = stub.Generate(request(max_tokens=9))
        wait_until(lambda: len(router.running) == 1, "the request")
        (running,) = router.running.values()
        running.connection.send(Kind.EVENTS, {"e": events})
        with pytest.raises(grpc.RpcError) as caught:
            list(stream)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        wait_until(lambda: service.ready, "the gateway to connect again")
        router.resume()
        assert list(stub.Generate(request(max_tokens=1)))[-1].HasField("finish")


def test_what_cannot_be_sent_to_a_router_ends_instead_of_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        FakeRouter() as router,
        gateway({"r0": router.address}, replay_s=0.0) as service,
        generation_stub(service) as stub,
    ):
        with monkeypatch.context() as patch:
            patch.setattr(frames, "MAX_HEADER_BYTES", 500)
            lost = refusal(stub, request(stop_token_ids=[200] * 600))
            assert lost.code() is grpc.StatusCode.UNAVAILABLE
        wait_until(lambda: service.ready, "the router to be reached again")
        assert list(stub.Generate(request(max_tokens=2)))[-1].finish.usage.completion_tokens == 2


def test_a_router_that_moves_is_followed() -> None:
    with FakeRouter() as old, FakeRouter() as new, gateway({"r0": old.address}) as service:
        service.update({"r0": new.address})
        with generation_stub(service) as stub:
            wait_until(lambda: (old.connections, new.connections) == (0, 1), "the new address")
            wait_until(lambda: service.ready, "its welcome")
            list(stub.Generate(request(max_tokens=1)))
        assert (len(old.counts.submitted), len(new.counts.submitted)) == (0, 1)


def test_a_router_of_another_library_is_not_used() -> None:
    with FakeRouter(library="b" * 64) as router:
        service = GatewayService(GatewayConfig(port=0), served_model(library="a" * 64))
        service.start()
        service.update({"r0": router.address})
        try:
            with generation_stub(service) as stub:
                assert refusal(stub, request()).code() is grpc.StatusCode.UNAVAILABLE
        finally:
            service.shutdown()


def test_a_port_in_use_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        service = GatewayService(GatewayConfig(port=port), served_model())
        with pytest.raises(PortInUse, match=str(port)):
            service.start()
        service.shutdown()


def test_two_gateways_do_not_share_a_port() -> None:
    with gateway({}) as service:
        port = int(service.address.rpartition(":")[2])
        second = GatewayService(GatewayConfig(port=port), served_model())
        with pytest.raises(PortInUse):
            second.start()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "example.org"])
def test_it_listens_on_loopback_unless_told(host: str) -> None:
    with pytest.raises(ClusterError, match="--insecure"):
        GatewayService(GatewayConfig(host=host, port=0), served_model()).start()


def test_insecure_listens_everywhere() -> None:
    with gateway({}, host="0.0.0.0", insecure=True) as service:
        assert service.address.startswith("0.0.0.0:")


def test_shutdown_lets_running_streams_end() -> None:
    with (
        FakeRouter(paused=True) as router,
        gateway({"r0": router.address}) as service,
        generation_stub(service) as stub,
    ):
        stream = stub.Generate(request(max_tokens=5))
        wait_until(lambda: len(router.running) == 1, "the request")
        router.resume()
        service.shutdown(grace_s=10.0)
        assert list(stream)[-1].finish.usage.completion_tokens == 5
        assert refusal(stub, request()).code() is grpc.StatusCode.UNAVAILABLE


def test_shutdown_cuts_what_does_not_end() -> None:
    with FakeRouter(paused=True) as router, gateway({"r0": router.address}) as service:
        with generation_stub(service) as stub:
            stream = stub.Generate(request(max_tokens=5))
            wait_until(lambda: len(router.running) == 1, "the request")
            service.shutdown(grace_s=0.0)
            with pytest.raises(grpc.RpcError):
                list(stream)
        wait_until(lambda: not router.running, "the router to be told")


def test_a_chat_without_messages_is_refused() -> None:
    with FakeRouter() as router, gateway({"r0": router.address}) as service, generation_stub(service) as stub:
        with pytest.raises(grpc.RpcError, match="messages is empty") as caught:
            list(stub.Chat(pb.ChatRequest()))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
