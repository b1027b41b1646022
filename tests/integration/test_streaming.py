"""Thirty-two streams at once through a real gateway, a real router and real expert nodes: all of them right,
and what half of them hold is given back when their clients go."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from cluster.config import EngineConfig
from cluster.dispatch.handshake import Identity
from cluster.gateway.served import ServedModel
from cluster.gateway.service import GatewayService
from cluster.library.bundled import open_model
from cluster.library.reader import Library
from cluster.router.engine import Engine
from cluster.router.service import RouterService
from protos import generation_pb2 as pb
from protos import generation_pb2_grpc
from support.engines import engine_over, run_all
from support.engines import request as engine_request
from support.gateways import gateway, generation_stub, wait_until

STREAMS = 32
CONFIG = EngineConfig(kv_bytes=32 << 20)
TEXT = "And God said, Let there be light: and there was light. To be, or not to be, that is the question."


@pytest.fixture(scope="module")
def library() -> Library:
    return open_model()


@pytest.fixture(scope="module")
def prompts(library: Library) -> list[list[int]]:
    """Different lengths, and different tokens."""
    ids = library.tokenizer().encode(TEXT * 4)
    return [ids[number : number + 1 + 3 * number] for number in range(STREAMS)]


def tokens_of(number: int) -> int:
    return 5 + number


def sampling(number: int) -> dict[str, float]:
    """Half of them greedy, half sampled, each with a seed of its own."""
    return {"temperature": 0.8 if number % 2 else 0.0, "top_p": 0.95, "seed": number}


@pytest.fixture(scope="module")
def expected(library: Library, prompts: list[list[int]]) -> list[list[int]]:
    """Each request alone, in this process."""
    found = []
    with engine_over(library, CONFIG) as engine:
        for number, prompt in enumerate(prompts):
            one = engine_request("a", prompt, tokens_of(number), **sampling(number))
            found.append(run_all(engine, [one])["a"].tokens)
    return found


Served = tuple[generation_pb2_grpc.GenerationStub, GatewayService, Engine]


@contextmanager
def serving(library: Library) -> Iterator[Served]:
    with engine_over(library, CONFIG, nodes=3) as engine:
        router = RouterService(engine, Identity("router", "router-0", 1, library.digest))
        address = router.start()
        router.open()
        served = ServedModel.of(library, engine.context)
        try:
            with gateway({"router-0": address}, served) as front, generation_stub(front) as stub:
                yield stub, front, engine
        finally:
            router.shutdown()


def ask(number: int, prompt: list[int], tokens: int) -> pb.GenerateRequest:
    wishes = pb.Sampling(max_tokens=tokens, ignore_eos=True, **sampling(number))
    return pb.GenerateRequest(token_ids=pb.TokenIds(ids=prompt), sampling=wishes)


def test_thirty_two_streams_are_all_correct(
    library: Library, prompts: list[list[int]], expected: list[list[int]]
) -> None:
    def one(number: int) -> tuple[list[int], str]:
        parts = list(stub.Generate(ask(number, prompts[number], tokens_of(number))))
        return [token for part in parts for token in part.token_ids], "".join(part.text for part in parts)

    tokenizer = library.tokenizer()
    with serving(library) as (stub, _, engine), ThreadPoolExecutor(STREAMS) as clients:
        answers = list(clients.map(one, range(STREAMS)))
        wait_until(lambda: engine.idle, "the engine to be idle")
        assert engine.stats.kv_pages_used == 0
        assert engine.stats.steps < sum(map(len, expected)), "they were batched"
    assert [tokens for tokens, _ in answers] == expected
    assert [text for _, text in answers] == [tokenizer.decode(tokens) for tokens in expected]


def test_cancelling_half_frees_their_pages_and_slots(library: Library, prompts: list[list[int]]) -> None:
    with serving(library) as (stub, front, engine):
        streams = [stub.Generate(ask(number, prompts[number], 1500)) for number in range(STREAMS)]
        for stream in streams:
            while not next(stream).token_ids:
                pass  # the first message tells the seed
        assert engine.stats.running == STREAMS
        for stream in streams[::2]:
            stream.cancel()
        wait_until(lambda: engine.stats.running == STREAMS // 2, "half of the slots to be free")
        wait_until(lambda: front.stats()["outstanding"] == STREAMS // 2, "the gateway to forget them")
        held = sum(len(sequence.pages) for sequence in list(engine._running))
        assert 0 < held <= engine.stats.kv_pages_used <= held + STREAMS, "only the living hold pages"
        for stream in streams[1::2]:
            stream.cancel()
        wait_until(lambda: engine.idle, "all slots to be free")
        assert engine.stats.kv_pages_used == 0
        assert engine.stats.waiting == 0
        wait_until(lambda: front.stats()["outstanding"] == 0, "the gateway to forget all")
