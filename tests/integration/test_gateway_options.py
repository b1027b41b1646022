"""What moemesh.v1 offers beyond tokens: stop strings, samples, alternatives, chat, embeddings, facts."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import grpc
import pytest

from cluster.config import EngineConfig
from cluster.dispatch.handshake import Identity
from cluster.gateway.served import ServedModel
from cluster.gateway.service import GatewayService
from cluster.library.bundled import open_model
from cluster.library.reader import Library
from cluster.model.text_stream import TextStream
from cluster.router.service import RouterService
from cluster.types import NUMERICS_VERSION, sample_seed
from protos import generation_pb2 as pb
from protos import generation_pb2_grpc
from support.engines import engine_over, run_all
from support.engines import request as engine_request
from support.fake_router import WIDTH, FakeRouter, logprob
from support.gateways import (
    TEMPLATE,
    byte_tokenizer,
    gateway,
    generation_stub,
    request,
    wait_until,
)

Stub = generation_pb2_grpc.GenerationStub
SCHEMA = json.dumps({"type": "object", "properties": {"n": {"enum": [1, 2, "é"]}}, "required": ["n"]})


@contextmanager
def fake(**options: Any) -> Iterator[tuple[FakeRouter, GatewayService, Stub]]:
    with (
        FakeRouter(**options) as router,
        gateway({"r0": router.address}) as service,
        generation_stub(service) as stub,
    ):
        yield router, service, stub


@pytest.fixture(scope="module")
def stub() -> Iterator[Stub]:
    with fake() as (_, _, made):
        yield made


class Collected:
    """The messages of a stream, by sample."""

    def __init__(self, responses: Any) -> None:
        self.text: dict[int, str] = {}
        self.ids: dict[int, list[int]] = {}
        self.finish: dict[int, pb.Finish] = {}
        self.alternatives: list[dict[int, float]] = []
        self.start = pb.Start()
        for response in responses:
            if response.HasField("start"):
                self.start = response.start
                continue
            index = response.index
            assert index not in self.finish, "nothing comes after a sample's last message"
            self.text[index] = self.text.get(index, "") + response.text
            self.ids.setdefault(index, []).extend(response.token_ids)
            for place in response.alternatives:
                self.alternatives.append(dict(zip(place.token_ids, place.logprobs, strict=True)))
            if response.HasField("finish"):
                self.finish[index] = response.finish


def say(text: str) -> Any:
    """A script: the model says this, whatever it is asked."""
    ids = byte_tokenizer().encode(text)
    return lambda prompt, sampling: ids[: sampling["max_tokens"]]


@pytest.mark.parametrize(
    ("said", "stop", "text", "tokens"),
    [
        ("one\n\ntwo", ["\n\n"], "one", 5),
        ("1 € or 2 €?", ["€ or 2 €"], "1 ", 14),
        ("abcd", ["cd", "bc"], "a", 3),
        ("abcabd", ["abd"], "abc", 6),
        ("abca", ["cab"], "abca", 4),
    ],
)
def test_text_ends_before_a_stop_string(said: str, stop: list[str], text: str, tokens: int) -> None:
    """Every byte is a token here, so each stop string crosses the borders of tokens."""
    with fake(script=say(said)) as (router, _, stub):
        got = Collected(stub.Generate(request(stop=stop, max_tokens=len(said.encode()))))
        assert got.text[0] == text
        assert len(got.ids[0]) == got.finish[0].usage.completion_tokens == tokens
        if text == said:
            assert (got.finish[0].reason, got.finish[0].HasField("stop")) == (pb.FINISH_REASON_LENGTH, False)
        else:
            assert got.finish[0].reason == pb.FINISH_REASON_STOP
            assert got.finish[0].stop in stop
        wait_until(lambda: not router.running, "the request to end at the router")


def test_what_may_begin_a_stop_string_is_held_back() -> None:
    with fake(script=say("aXYb"), paused=True) as (router, _, stub):
        call = stub.Generate(request(stop=["XYZ"], max_tokens=4))
        texts = []
        next(call)  # start
        wait_until(lambda: router.running, "the request")
        for _ in range(4):
            router.step()
            texts.append(next(call).text)
        assert texts == ["a", "", "", "XYb"]


@pytest.mark.parametrize("known", range(9))
def test_a_resumed_stream_stops_where_the_whole_one_does(known: int) -> None:
    """Text held back when the first stream was cut is given out by the second one, once."""
    said, stop = "1€, 2€ end", "€ e"
    with fake(script=say(said)) as (_, _, stub):
        stream = TextStream(byte_tokenizer(), [stop])
        before, _ = stream.push(byte_tokenizer().encode(said)[:known])
        wishes = {"stop": [stop], "max_tokens": len(said.encode()), "resume_from": known}
        got = Collected(stub.Generate(request(**wishes)))
        assert before + got.text[0] == "1€, 2"
        assert got.finish[0].usage.completion_tokens == 12
        assert len(got.ids[0]) == 12 - known


def test_a_stop_string_frees_the_router_at_once() -> None:
    with fake(script=say("stop here" + "x" * 100)) as (router, service, stub):
        got = Collected(stub.Generate(request(stop=["here"], max_tokens=100)))
        assert got.text[0] == "stop "
        wait_until(lambda: not router.running, "the router to let it go")
        assert service.stats()["outstanding"] == 0


def test_samples_come_with_their_index_and_their_seeds() -> None:
    with fake() as (router, service, stub):
        got = Collected(stub.Generate(request("abc", n=3, max_tokens=4, temperature=1.0, seed=7)))
        seeds = [sample_seed(7, i) for i in range(3)]
        assert sorted(got.finish) == [0, 1, 2]
        assert list(got.start.sample_seeds) == seeds
        assert got.start.seed == 7
        assert [s.sampling["seed"] for s in router.counts.submitted] == seeds
        for index, seed in enumerate(seeds):
            alone = Collected(stub.Generate(request("abc", max_tokens=4, temperature=1.0, seed=seed)))
            assert (got.ids[index], got.text[index]) == (alone.ids[0], alone.text[0])
        assert service.stats()["outstanding"] == 0


def test_an_aborted_request_ends_all_of_its_samples() -> None:
    with fake(paused=True) as (router, service, stub):
        call = stub.Generate(request("abc", n=3, max_tokens=4, request_id="mine"))
        next(call)
        wait_until(lambda: len(router.running) == 3, "three sequences")
        assert stub.Abort(pb.AbortRequest(request_id="mine")).aborted
        got = Collected(call)
        assert [finish.reason for finish in got.finish.values()] == [pb.FINISH_REASON_ABORTED] * 3
        wait_until(lambda: not router.running, "the router to let them go")
        assert not stub.Abort(pb.AbortRequest(request_id="mine")).aborted
        assert service.stats()["outstanding"] == 0


def test_a_client_that_leaves_frees_all_samples() -> None:
    with fake(paused=True) as (router, service, stub):
        call = stub.Generate(request("abc", n=3, max_tokens=4))
        next(call)
        wait_until(lambda: len(router.running) == 3, "three sequences")
        call.cancel()
        wait_until(lambda: not router.running, "the router to let them go")
        wait_until(lambda: service.stats()["outstanding"] == 0, "the gateway to forget it")


def test_samples_count_in_the_queue() -> None:
    with (
        FakeRouter(paused=True) as router,
        gateway({"r0": router.address}, window=3, max_queued=1) as service,
        generation_stub(service) as stub,
    ):
        first = stub.Generate(request(n=3))
        wait_until(lambda: len(router.running) == 3, "the first")
        with pytest.raises(grpc.RpcError) as caught:
            list(stub.Generate(request(n=2)))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        first.cancel()


def test_alternatives_come_with_every_token(stub: Stub) -> None:
    got = Collected(stub.Generate(request("abc", max_tokens=3, top_logprobs=2)))
    assert got.alternatives == [{0: logprob(0), 1: logprob(1)}] * 3
    assert not Collected(stub.Generate(request("abc", max_tokens=3))).alternatives


def test_an_embedding_has_the_models_width_and_may_be_normalised(stub: Stub) -> None:
    ids = byte_tokenizer().encode("abcdef")
    plain = stub.Embed(pb.EmbedRequest(text="abcdef"))
    assert (list(plain.values), plain.prompt_tokens) == (ids[:WIDTH], 6)
    values = stub.Embed(pb.EmbedRequest(token_ids=pb.TokenIds(ids=ids), normalise=True)).values
    assert math.hypot(*values) == pytest.approx(1, abs=1e-6)
    assert values[0] / values[1] == pytest.approx(ids[0] / ids[1])


def test_ids_become_text_again(stub: Stub) -> None:
    ids = byte_tokenizer().encode("1 € or 2?")
    assert stub.Detokenize(pb.DetokenizeRequest(token_ids=ids)).text == "1 € or 2?"
    assert stub.Detokenize(pb.DetokenizeRequest(token_ids=ids[:3])).text == "1 \ufffd"
    assert stub.Detokenize(pb.DetokenizeRequest()).text == ""
    with pytest.raises(grpc.RpcError, match=r"0\.\.255"):
        stub.Detokenize(pb.DetokenizeRequest(token_ids=[256]))


def test_chat_renders_messages_and_variables() -> None:
    with fake() as (router, _, stub):
        messages = [pb.ChatMessage(role="user", content="hi")]
        chat = pb.ChatRequest(messages=messages, sampling=pb.Sampling(max_tokens=1), priority=3)
        Collected(stub.Chat(chat))
        assert byte_tokenizer().decode(router.counts.submitted[0].prompt) == "<user>hi<a>"
        assert router.counts.submitted[0].asked.priority == 3
        chat.variables = json.dumps({"add_generation_prompt": True, "tools": [1]})
        Collected(stub.Chat(chat))
        for wrong in ("[", "[]", "7"):
            chat.variables = wrong
            with pytest.raises(grpc.RpcError, match="variables"):
                Collected(stub.Chat(chat))


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"presence_penalty": 2.1}, "presence_penalty"),
        ({"frequency_penalty": float("nan")}, "frequency_penalty"),
        ({"top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": -1}, "top_logprobs"),
        ({"n": 0}, "n is 0"),
        ({"n": 65}, "n is 65"),
        ({"n": 2, "resume_from": 3}, "resume_from"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["x" * 257]}, "stop"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"priority": 101}, "priority"),
        ({"grammar": pb.Grammar()}, "grammar"),
        ({"grammar": pb.Grammar(regex="")}, "grammar"),
        ({"grammar": pb.Grammar(regex="a")}, "tokenizer"),  # this gateway's model has no grammars
    ],
)
def test_a_bad_wish_is_named(stub: Stub, fields: Mapping[str, Any], names: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.Generate(request(**fields)))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert names in str(caught.value.details())


@pytest.fixture(scope="module")
def library() -> Library:
    return open_model()


@pytest.fixture(scope="module")
def bundled(library: Library) -> Iterator[Stub]:
    """The bundled model: two nodes, a router, a gateway, all on real sockets."""
    with engine_over(library, EngineConfig(kv_bytes=8 << 20), nodes=2) as engine:
        router = RouterService(engine, Identity("router", "r0", 1, library.digest))
        address = router.start()
        router.open()
        try:
            served = ServedModel.of(library, engine.context)
            with gateway({"r0": address}, served) as front, generation_stub(front) as stub:
                # Compiles in a thread, which stays: it must not count as left behind by a test.
                list(stub.Generate(request(max_tokens=1, grammar=pb.Grammar(regex="a"))))
                yield stub
        finally:
            router.shutdown()


def test_the_model_is_described(bundled: Stub, library: Library) -> None:
    info, spec = bundled.GetModel(pb.GetModelRequest()), library.spec
    assert (info.model, info.library) == (library.name, library.digest)
    assert info.numerics_version == NUMERICS_VERSION
    assert (info.family, info.layers, info.vocabulary) == (spec.family, spec.layers, spec.vocab)
    assert (info.experts, info.experts_per_token) == (spec.experts, spec.top_k)
    assert (info.embedding_width, info.variant) == (spec.hidden, library.variants[0])
    assert list(info.tiers) == ["exact"]
    assert info.limits.samples == 64
    with pytest.raises(grpc.RpcError, match="unknown model"):
        bundled.GetModel(pb.GetModelRequest(model="gpt"))


def test_a_models_template_is_told(stub: Stub) -> None:
    assert stub.GetModel(pb.GetModelRequest()).chat_template == TEMPLATE


def test_json_through_the_cluster_is_json_and_the_same_as_in_one_process(
    bundled: Stub, library: Library
) -> None:
    wishes = {"temperature": 0.9, "seed": 11, "frequency_penalty": 0.5, "top_logprobs": 2}
    grammar = pb.Grammar(json_schema=SCHEMA)
    got = Collected(bundled.Generate(request("A number:", n=2, max_tokens=60, grammar=grammar, **wishes)))
    for index, text in got.text.items():
        assert json.loads(text)["n"] in (1, 2, "é")
        assert got.finish[index].reason == pb.FINISH_REASON_STOP
    words = {"frequency_penalty": 0.5, "presence_penalty": -0.25, "temperature": 1.1}
    remote = Collected(
        bundled.Generate(request("A word:", n=3, seed=2, max_tokens=9, ignore_eos=True, **words))
    )
    with engine_over(library, EngineConfig()) as engine:
        ids = library.tokenizer().encode("A word:")
        for index in range(3):
            name, seed = str(index), sample_seed(2, index)
            local = run_all(engine, [engine_request(name, ids, 9, seed=seed, **words)])[name]
            assert local.tokens == remote.ids[index]


def test_embeddings_and_scores_through_the_cluster_have_the_bits_of_one_process(
    bundled: Stub, library: Library
) -> None:
    ids = library.tokenizer().encode("In the beginning was the Word")
    tokens = pb.TokenIds(ids=ids)
    with engine_over(library, EngineConfig()) as engine:
        local = run_all(engine, [engine_request("e", ids, 0, "embed"), engine_request("s", ids, 0, "score")])
    assert list(bundled.Embed(pb.EmbedRequest(token_ids=tokens)).values) == local["e"].embedding.tolist()
    scored = bundled.Score(pb.ScoreRequest(token_ids=tokens, top_logprobs=2))
    assert list(scored.logprobs) == local["s"].scores.tolist()
    assert [len(place.token_ids) for place in scored.alternatives] == [2] * (len(ids) - 1)


@pytest.mark.parametrize(
    ("grammar", "says"),
    [
        (pb.Grammar(json_schema='{"type": "objekt"}'), "objekt"),
        (pb.Grammar(regex="(a"), "unclosed"),
        (pb.Grammar(lark="start: nothing"), "nothing"),
    ],
)
def test_a_wrong_grammar_is_an_invalid_argument(bundled: Stub, grammar: pb.Grammar, says: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        list(bundled.Generate(request(grammar=grammar)))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert says in str(caught.value.details())
