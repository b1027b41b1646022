"""ModelStreamInfer with our own generated code; stock clients are in tests/clients."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest

from protos import open_inference_pb2 as pb
from support.fake_router import FakeRouter, logprob
from support.gateways import gateway, wait_until
from support.open_inference import Stub, asked, outputs, stub_of

DEEP = "[" * 100_000
VAST = "9" * 400


@pytest.fixture
def router() -> Iterator[FakeRouter]:
    with FakeRouter() as running:
        yield running


@pytest.fixture
def stub(router: FakeRouter) -> Iterator[Stub]:
    with stub_of(router) as made:
        yield made


def streamed(stub: Stub, *requests: pb.ModelInferRequest) -> list[pb.ModelStreamInferResponse]:
    return list(stub.ModelStreamInfer(iter(requests)))


def is_final(response: pb.ModelStreamInferResponse) -> bool:
    return response.infer_response.parameters["triton_final_response"].bool_param


def test_a_stream_sends_deltas_and_marks_the_last(stub: Stub) -> None:
    responses = streamed(stub, asked(id="s", text_input="añ漢", stream=True, max_tokens=12))
    values = [outputs(response.infer_response) for response in responses]
    assert "".join(value["text_output"] for value in values) == "añ漢" * 2
    assert sum(value["num_output_tokens"] for value in values) == 12
    assert [is_final(response) for response in responses] == [False] * (len(responses) - 1) + [True]
    assert [value["finish_reason"] for value in values[:-1]] == [""] * (len(values) - 1)
    assert values[-1]["finish_reason"] == "length"
    assert values[-1]["cumulative_logprob"] == sum(logprob(i) for i in range(12))
    assert {response.infer_response.id for response in responses} == {"s"}


def test_without_stream_one_answer_comes(stub: Stub) -> None:
    responses = streamed(stub, asked(text_input="ab", max_tokens=5))
    assert [outputs(r.infer_response)["text_output"] for r in responses] == ["ababa"]


def test_an_empty_final_response_is_sent_if_asked_for(stub: Stub) -> None:
    request = asked(id="e", text_input="ab", stream=True, max_tokens=3)
    request.parameters["triton_enable_empty_final_response"].bool_param = True
    responses = streamed(stub, request)
    assert [is_final(response) for response in responses] == [False] * (len(responses) - 1) + [True]
    last = responses[-1].infer_response
    assert not last.outputs
    assert last.id == "e"


def test_an_error_stays_inside_the_stream(stub: Stub) -> None:
    responses = streamed(
        stub,
        asked(id="bad", text_input="a", max_tokens=-1),
        pb.ModelInferRequest(model_name="gpt", id="unknown"),
        asked(id="good", text_input="ab", max_tokens=2),
    )
    errors = {r.infer_response.id: r.error_message for r in responses if r.error_message}
    assert set(errors) == {"bad", "unknown"}
    assert "max_tokens" in errors["bad"]
    assert errors["unknown"].startswith("[NOT_FOUND]")
    good = [outputs(r.infer_response)["text_output"] for r in responses if not r.error_message]
    assert good == ["ab"]


@pytest.mark.parametrize(
    "parameters",
    [
        DEEP,
        f'{{"stop": {DEEP}',
        f'{{"json_schema": {{"a": {"[" * 3000 + "]" * 3000}}}}}',
        f'{{"temperature": {VAST}}}',
        f'{{"max_tokens": "{"x" * 20_000}"}}',
        f'{{"{"x" * 20_000}": 1}}',
        f'{{"top_p": {VAST * 20}}}',
    ],
)
def test_json_beyond_all_bounds_ends_its_own_request_alone(stub: Stub, parameters: str) -> None:
    bad = asked(id="bad", text_input="a", sampling_parameters=parameters)
    responses = streamed(stub, bad, asked(id="good", text_input="ab", max_tokens=2))
    errors = [(r.infer_response.id, r.error_message) for r in responses if r.error_message]
    assert [name for name, _ in errors] == ["bad"]
    assert errors[0][1].startswith("[INVALID_ARGUMENT]")
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(bad)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_requests_of_one_stream_run_side_by_side() -> None:
    with (
        FakeRouter(paused=True) as router,
        gateway({"r0": router.address}) as service,
        grpc.insecure_channel(service.address) as channel,
    ):
        requests = [asked(id=str(i), text_input="ab", stream=True, max_tokens=4) for i in range(8)]
        responses = Stub(channel).ModelStreamInfer(iter(requests))
        wait_until(lambda: len(router.running) == 8, "all eight at the router")
        router.resume()
        texts = dict.fromkeys(map(str, range(8)), "")
        for response in responses:
            answer = response.infer_response
            texts[answer.id] += outputs(answer)["text_output"]
    assert set(texts.values()) == {"abab"}


def test_cancelling_a_stream_aborts_all_its_requests() -> None:
    with FakeRouter(paused=True) as router, gateway({"r0": router.address}) as service:
        with grpc.insecure_channel(service.address) as channel:
            requests = [asked(id=str(i), text_input="ab", stream=True, max_tokens=4) for i in range(8)]
            responses = Stub(channel).ModelStreamInfer(iter(requests))
            wait_until(lambda: len(router.running) == 8, "all eight at the router")
            responses.cancel()
            wait_until(lambda: not router.running, "all eight to be aborted")
        wait_until(lambda: service.stats()["outstanding"] == 0, "the gateway to forget them")
        assert len(router.counts.aborted) == 8


def test_a_timeout_is_kept_on_both_calls() -> None:
    with (
        FakeRouter(paused=True) as router,
        gateway({"r0": router.address}) as service,
        grpc.insecure_channel(service.address) as channel,
    ):
        stub = Stub(channel)
        request = asked(id="7", text_input="ab", max_tokens=9)
        request.parameters["timeout"].int64_param = 50_000
        with pytest.raises(grpc.RpcError) as caught:
            stub.ModelInfer(request)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        (answer,) = stub.ModelStreamInfer(iter([request]))
        assert answer.error_message.startswith("[DEADLINE_EXCEEDED]")
        assert answer.infer_response.id == "7"
        wait_until(lambda: not router.running, "the router to hear of it")
        request.parameters["timeout"].string_param = "1"
        with pytest.raises(grpc.RpcError, match="microseconds"):
            stub.ModelInfer(request)
