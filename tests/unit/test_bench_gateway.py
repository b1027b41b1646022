"""The client of `moemesh bench cluster` counts what a gateway sends and asks for what it says it measures."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import grpc
import pytest

from cluster.cli.bench_gateway import NEW_TOKENS, PROMPT_TOKENS, GatewayPreset, measure_gateway
from cluster.cli.report import Result
from protos import generation_pb2, generation_pb2_grpc


class Gateway(generation_pb2_grpc.GenerationServicer):
    """Answers at once with as many tokens as asked for, less `missing`."""

    def __init__(self, missing: int = 0) -> None:
        self.missing = missing
        self.prompts: list[tuple[int, ...]] = []

    async def Tokenize(
        self, request: generation_pb2.TokenizeRequest, context: object
    ) -> generation_pb2.TokenizeResponse:
        return generation_pb2.TokenizeResponse(token_ids=list(request.text.encode()))

    async def Generate(
        self, request: generation_pb2.GenerateRequest, context: object
    ) -> AsyncIterator[generation_pb2.GenerateResponse]:
        self.prompts.append(tuple(request.token_ids.ids))
        assert request.sampling.ignore_eos
        yield generation_pb2.GenerateResponse(start=generation_pb2.Start())
        for _ in range(request.sampling.max_tokens - self.missing):
            yield generation_pb2.GenerateResponse(token_ids=[1])
        yield generation_pb2.GenerateResponse(finish=generation_pb2.Finish())


def against(gateway: Gateway, ask: Callable[[str], Awaitable[list[Result]]]) -> list[Result]:
    async def serve() -> list[Result]:
        server = grpc.aio.server()
        generation_pb2_grpc.add_GenerationServicer_to_server(gateway, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            return await ask(f"127.0.0.1:{port}")
        finally:
            await server.stop(None)

    return asyncio.run(serve())


def measure(address: str) -> Awaitable[list[Result]]:
    return measure_gateway(address, GatewayPreset(first_tokens=3, repeats=2), progress=lambda text: None)


def test_every_figure_has_its_id_and_runs() -> None:
    gateway = Gateway()
    results = {r.id: r for r in against(gateway, measure)}
    assert list(results) == [
        "cluster.gateway.first_token_p50",
        "cluster.gateway.first_token_p90",
        "cluster.decode.tokens_per_s.streams1",
        "cluster.decode.tokens_per_s.streams8",
        "cluster.decode.tokens_per_s.streams32",
        "cluster.decode.ratio_streams32_to_1",
    ]
    assert results["cluster.gateway.first_token_p50"].runs == 3
    assert results["cluster.decode.tokens_per_s.streams8"].runs == 2
    assert len(gateway.prompts) == 1 + 3 + 2 * (1 + 8 + 32)
    assert {len(prompt) for prompt in gateway.prompts} == {PROMPT_TOKENS}
    assert len(set(gateway.prompts)) >= 32, "streams of one run have different prompts"


def test_a_short_stream_is_an_error_not_a_figure() -> None:
    with pytest.raises(RuntimeError, match=f"instead of {NEW_TOKENS}"):
        against(Gateway(missing=1), measure)
