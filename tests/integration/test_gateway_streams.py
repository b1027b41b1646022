"""Streams through a real gateway and real sockets to a scripted router."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import pytest

from cluster.errors import NodeLost
from cluster.gateway.service import GatewayService
from protos import generation_pb2 as pb
from protos import generation_pb2_grpc
from support.fake_router import FakeRouter, logprob
from support.gateways import byte_tokenizer, gateway, generation_stub, request, served_model, wait_until

TEXT = "añ漢🙂"  # characters of 1, 2, 3 and 4 bytes: as many tokens


@pytest.fixture
def router() -> Iterator[FakeRouter]:
    with FakeRouter() as running:
        yield running


@pytest.fixture
def service(router: FakeRouter) -> Iterator[GatewayService]:
    with gateway({"r0": router.address}) as running:
        yield running


@pytest.fixture
def stub(service: GatewayService) -> Iterator[generation_pb2_grpc.GenerationStub]:
    with generation_stub(service) as running:
        yield running


@contextmanager
def paused() -> Iterator[tuple[FakeRouter, GatewayService, generation_pb2_grpc.GenerationStub]]:
    with (
        FakeRouter(paused=True) as router,
        gateway({"r0": router.address}) as service,
        generation_stub(service) as stub,
    ):
        yield router, service, stub


def collect(responses: Iterator[pb.GenerateResponse]) -> tuple[pb.Start, str, list[int], pb.Finish]:
    parts = list(responses)
    assert parts[0].HasField("start")
    assert parts[-1].HasField("finish")
    ids = [token for part in parts for token in part.token_ids]
    return parts[0].start, "".join(part.text for part in parts), ids, parts[-1].finish


def test_a_stream_starts_streams_and_finishes(stub: generation_pb2_grpc.GenerationStub) -> None:
    start, text, ids, finish = collect(stub.Generate(request("abc", max_tokens=7)))
    assert (start.model, start.tier, start.prompt_tokens) == ("tiny", "exact", 3)
    assert start.request_id
    assert text == "abcabca"
    assert ids == byte_tokenizer().encode("abcabca")
    assert finish.reason == pb.FINISH_REASON_LENGTH
    assert (finish.usage.prompt_tokens, finish.usage.completion_tokens) == (3, 7)
    assert 0 < finish.ttft_ms <= finish.duration_ms


def test_log_probabilities_come_with_their_tokens(stub: generation_pb2_grpc.GenerationStub) -> None:
    parts = list(stub.Generate(request("abc", max_tokens=10)))
    assert [value for part in parts for value in part.logprobs] == [logprob(i) for i in range(10)]


def test_no_delta_splits_a_character(router: FakeRouter, stub: generation_pb2_grpc.GenerationStub) -> None:
    parts = list(stub.Generate(request(TEXT, max_tokens=30)))
    assert "".join(part.text for part in parts) == TEXT * 3
    assert all("\ufffd" not in part.text for part in parts)


def test_a_character_cut_off_by_max_tokens_is_marked(stub: generation_pb2_grpc.GenerationStub) -> None:
    _, text, ids, _ = collect(stub.Generate(request("漢", max_tokens=4)))
    assert text == "漢\ufffd"
    assert len(ids) == 4


def test_a_missing_seed_is_drawn_and_returned(
    router: FakeRouter, stub: generation_pb2_grpc.GenerationStub
) -> None:
    seeds = {collect(stub.Generate(request(max_tokens=1, temperature=1.0)))[0].seed for _ in range(4)}
    assert len(seeds) == 4
    assert seeds == {submitted.sampling["seed"] for submitted in router.counts.submitted}


def test_a_given_seed_is_kept(stub: generation_pb2_grpc.GenerationStub) -> None:
    start, text, _, _ = collect(stub.Generate(request("abcd", max_tokens=4, temperature=0.5, seed=2)))
    assert (start.seed, text) == (2, "cdab")


def test_every_sampling_field_reaches_the_router(
    router: FakeRouter, stub: generation_pb2_grpc.GenerationStub
) -> None:
    fields = {
        "max_tokens": 3,
        "temperature": 0.7,
        "top_k": 5,
        "top_p": 0.9,
        "min_p": 0.05,
        "repetition_penalty": 1.1,
        "seed": (1 << 64) - 1,
        "stop_token_ids": [4, 5],
        "ignore_eos": True,
    }
    collect(stub.Generate(request(**fields)))
    sent = router.counts.submitted[0].sampling
    assert {name: sent[name] for name in fields} == fields


def test_zero_tokens_need_no_router(router: FakeRouter, stub: generation_pb2_grpc.GenerationStub) -> None:
    _, text, ids, finish = collect(stub.Generate(request(max_tokens=0)))
    assert (text, ids, finish.reason) == ("", [], pb.FINISH_REASON_LENGTH)
    assert not router.counts.submitted


def test_messages_are_rendered_by_the_template(
    router: FakeRouter, stub: generation_pb2_grpc.GenerationStub
) -> None:
    said = [pb.ChatMessage(role="user", content="hi")]
    collect(stub.Chat(pb.ChatRequest(messages=said, sampling=pb.Sampling(max_tokens=1))))
    assert byte_tokenizer().decode(router.counts.submitted[0].prompt) == "<user>hi<a>"


@pytest.mark.parametrize("known", [0, 1, 5, 10, 15, 30, 40])
def test_a_resumed_stream_continues_where_the_first_was(
    stub: generation_pb2_grpc.GenerationStub, known: int
) -> None:
    """The text before and after `known` tokens joins without a gap, also inside a character."""
    before = "".join(_pieces(TEXT * 3)[:known])  # what a first stream cut after `known` tokens has sent
    _, text, ids, finish = collect(stub.Generate(request(TEXT, max_tokens=30, resume_from=known)))
    assert before + text == TEXT * 3
    assert len(ids) == max(0, 30 - known)
    assert finish.usage.completion_tokens == 30


def _pieces(text: str) -> list[str]:
    stream = served_model().text_stream()
    return [stream.push([token])[0] for token in byte_tokenizer().encode(text)]


def test_score_gives_one_logprob_for_every_token_after_the_first(
    stub: generation_pb2_grpc.GenerationStub,
) -> None:
    response = stub.Score(pb.ScoreRequest(text="abcd"))
    assert list(response.token_ids) == byte_tokenizer().encode("abcd")
    assert list(response.logprobs) == [logprob(i) for i in range(3)]


def test_score_of_a_single_token_is_empty(stub: generation_pb2_grpc.GenerationStub) -> None:
    assert list(stub.Score(pb.ScoreRequest(text="a")).logprobs) == []


def test_several_scores_in_one_frame_are_told_apart() -> None:
    with paused() as (router, _, stub):
        calls = [stub.Score.future(pb.ScoreRequest(text="x" * n)) for n in (2, 9, 5)]
        wait_until(lambda: len(router.running) == 3, "three scores to arrive")
        router.step()
        assert [len(call.result().logprobs) for call in calls] == [1, 8, 4]
        assert router.counts.frames == 1


def test_tokenize_tells_what_a_client_needs(stub: generation_pb2_grpc.GenerationStub) -> None:
    response = stub.Tokenize(pb.TokenizeRequest(text="añ"))
    assert list(response.token_ids) == byte_tokenizer().encode("añ")
    assert (response.context, response.chat_template) == (256, True)


def test_abort_ends_the_stream_and_the_work() -> None:
    with paused() as (router, _, stub):
        stream = stub.Generate(request(max_tokens=50, request_id="mine"))
        assert next(stream).start.request_id == "mine"
        wait_until(lambda: len(router.running) == 1, "the request")
        router.step()
        assert len(next(stream).token_ids) == 1
        assert stub.Abort(pb.AbortRequest(request_id="mine")).aborted
        finish = list(stream)[-1].finish
        assert finish.reason == pb.FINISH_REASON_ABORTED
        assert (finish.usage.prompt_tokens, finish.usage.completion_tokens) == (3, 1)
        wait_until(lambda: router.counts.aborted == [1], "the router to hear of it")
        assert not stub.Abort(pb.AbortRequest(request_id="mine")).aborted
        assert not router.running


def test_resuming_a_running_request_takes_its_place() -> None:
    with paused() as (router, _, stub):
        first = stub.Generate(request("abcdef", max_tokens=6, request_id="mine"))
        wait_until(lambda: len(router.running) == 1, "the first stream")
        router.step()
        assert len(next(first).token_ids) + len(next(first).token_ids) == 1
        second = stub.Generate(request("abcdef", max_tokens=6, request_id="mine", resume_from=1))
        wait_until(lambda: router.counts.aborted == [1], "the first to be aborted")
        assert list(first)[-1].finish.reason == pb.FINISH_REASON_ABORTED
        router.resume()
        assert collect(second)[1] == "bcdef"


def test_cancelling_half_of_32_streams_frees_what_they_held() -> None:
    with paused() as (router, service, stub):
        streams = [stub.Generate(request(f"{i:02d}", max_tokens=40 + i)) for i in range(32)]
        wait_until(lambda: len(router.running) == 32, "32 streams to arrive")
        router.step()
        for stream in streams[::2]:
            stream.cancel()
        wait_until(lambda: len(router.running) == 16, "half of them to be aborted")
        wait_until(lambda: service.stats()["outstanding"] == 16, "the gateway to forget them")
        router.resume()
        for i in range(1, 32, 2):
            _, text, ids, _ = collect(streams[i])
            assert len(ids) == 40 + i
            assert text == (f"{i:02d}" * 40)[: 40 + i]
        assert len(router.counts.aborted) == 16
        wait_until(lambda: service.stats()["outstanding"] == 0, "all to end")


def test_32_concurrent_streams_are_all_correct(
    router: FakeRouter, stub: generation_pb2_grpc.GenerationStub
) -> None:
    wrong: list[int] = []

    def run(i: int) -> None:
        text = collect(stub.Generate(request(f"<{i}ñ>", max_tokens=10 + i)))[1]
        whole = byte_tokenizer().decode([*router_answer(i)])
        if text != whole:
            wrong.append(i)

    def router_answer(i: int) -> list[int]:
        prompt = byte_tokenizer().encode(f"<{i}ñ>")
        return [prompt[k % len(prompt)] for k in range(10 + i)]

    threads = [threading.Thread(target=run, args=(i,)) for i in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert len(router.counts.submitted) == 32
    assert not router.running


def test_a_deadline_reaches_the_router() -> None:
    with paused() as (router, service, stub):
        stream = stub.Generate(request(max_tokens=50), timeout=0.3)
        with pytest.raises(grpc.RpcError) as caught:
            list(stream)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        wait_until(lambda: router.counts.aborted == [1], "the router to hear of the deadline")
        wait_until(lambda: service.stats()["outstanding"] == 0, "the gateway to forget it")


def test_a_slow_reader_gets_tokens_together_and_costs_one_request() -> None:
    """The router writes all 200 tokens while the client reads none; nothing is lost."""
    with paused() as (router, _, stub):
        stream = stub.Generate(request(max_tokens=200))
        wait_until(lambda: len(router.running) == 1, "the request")
        router.resume()
        wait_until(lambda: not router.running, "the router to have written all")
        assert collect(stream)[1] == ("abc" * 67)[:200]


def test_requests_go_to_the_router_with_the_fewest() -> None:
    with (
        FakeRouter(paused=True) as first,
        FakeRouter(paused=True) as second,
        gateway({"a": first.address, "b": second.address}) as service,
        generation_stub(service) as stub,
    ):
        streams = [stub.Generate(request(max_tokens=2)) for _ in range(8)]
        wait_until(lambda: len(first.running) + len(second.running) == 8, "eight requests")
        assert len(first.running) == len(second.running) == 4
        for router in (first, second):
            router.resume()
        for stream in streams:
            collect(stream)


def test_a_failure_carries_the_tokens_emitted() -> None:
    with paused() as (router, _, stub):
        stream = stub.Generate(request(max_tokens=50))
        wait_until(lambda: len(router.running) == 1, "the request")
        router.step()
        router.step()
        router.fail_running(NodeLost("node n1 is gone"))
        with pytest.raises(grpc.RpcError) as caught:
            list(stream)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert caught.value.details() == "node n1 is gone (2 tokens were sent)"


def test_a_failure_of_a_resumed_stream_carries_its_own_tokens() -> None:
    with paused() as (router, _, stub):
        stream = stub.Generate(request(max_tokens=50, resume_from=2))
        wait_until(lambda: len(router.running) == 1, "the request")
        for _ in range(3):
            router.step()
        router.fail_running(NodeLost("node n1 is gone"))
        with pytest.raises(grpc.RpcError) as caught:
            list(stream)
        assert caught.value.details() == "node n1 is gone (1 tokens were sent)"
