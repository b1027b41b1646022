"""Figures of a running cluster as a client sees them, through its gateway over gRPC."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import grpc

from cluster.cli.report import Result, Target, percentile, result
from protos import generation_pb2, generation_pb2_grpc

PROMPT_TOKENS = 64
NEW_TOKENS = 64
STREAMS = (1, 8, 32)
DEADLINE_S = 120.0

FIRST_TOKEN = Target(must=60, aim=30, at_most=True)
RATIO = Target(must=6, reference="one stream")

TEXT = (
    "In the beginning God created the heaven and the earth. And the earth was without form, and void; "
    "and darkness was upon the face of the deep. def read(path): return open(path).read() "
)

Progress = Callable[[str], None]


@dataclass(frozen=True)
class GatewayPreset:
    """first_tokens: requests whose first token is timed; repeats: runs of every number of streams."""

    first_tokens: int
    repeats: int


GATEWAY_PRESETS = {"minimal": GatewayPreset(20, 3), "full": GatewayPreset(100, 10)}


async def measure_gateway(address: str, preset: GatewayPreset, progress: Progress) -> list[Result]:
    """Run against an otherwise idle cluster. Raises grpc.RpcError as the gateway answers it."""
    async with grpc.aio.insecure_channel(address) as channel:
        client = Client(generation_pb2_grpc.GenerationStub(channel))
        await client.prepare()
        return [
            *await _first_tokens(client, preset, progress),
            *await _throughput(client, preset, progress),
        ]


class Client:
    """Sends prompts of exactly 64 tokens, drawn from those of one text; prompt n is always the same."""

    def __init__(self, stub: generation_pb2_grpc.GenerationAsyncStub) -> None:
        self._stub = stub
        self._ids: list[int] = []

    async def prepare(self) -> None:
        """Tokenise, and run one stream, so that nothing is measured that happens once."""
        request = generation_pb2.TokenizeRequest(text=TEXT)
        self._ids = list((await self._stub.Tokenize(request, timeout=DEADLINE_S)).token_ids)
        await self.stream(0, NEW_TOKENS)

    async def stream(self, number: int, new_tokens: int) -> float:
        """One request; seconds from its start to the first token. All tokens are read and counted."""
        start = time.perf_counter()
        first, tokens = 0.0, 0
        async for answer in self._stub.Generate(self._request(number, new_tokens), timeout=DEADLINE_S):
            if answer.token_ids and not tokens:
                first = time.perf_counter() - start
            tokens += len(answer.token_ids)
        if tokens != new_tokens:
            raise RuntimeError(f"the gateway sent {tokens} tokens instead of {new_tokens}")
        return first

    def _request(self, number: int, new_tokens: int) -> generation_pb2.GenerateRequest:
        ids = random.Random(number).choices(self._ids, k=PROMPT_TOKENS)
        sampling = generation_pb2.Sampling(max_tokens=new_tokens, ignore_eos=True)
        return generation_pb2.GenerateRequest(token_ids=generation_pb2.TokenIds(ids=ids), sampling=sampling)


async def _first_tokens(client: Client, preset: GatewayPreset, progress: Progress) -> list[Result]:
    times = []
    for number in range(preset.first_tokens):
        progress(f"first token, request {number + 1} of {preset.first_tokens}")
        times.append(1e3 * await client.stream(number, new_tokens=1))
    return [
        result("cluster.gateway.first_token_p50", times, "ms", FIRST_TOKEN),
        result("cluster.gateway.first_token_p90", [percentile(times, 90)], "ms"),
    ]


async def _throughput(client: Client, preset: GatewayPreset, progress: Progress) -> list[Result]:
    """Tokens a second of all streams together, from the first request to the end of the last stream."""
    speeds: dict[int, list[float]] = {streams: [] for streams in STREAMS}
    for run in range(preset.repeats):  # every number of streams in turn: a slow minute hits them alike
        for streams in STREAMS:
            progress(f"{streams} streams, run {run + 1} of {preset.repeats}")
            start = time.perf_counter()
            async with asyncio.TaskGroup() as group:
                for number in range(streams):
                    group.create_task(client.stream(number, NEW_TOKENS))
            speeds[streams].append(streams * NEW_TOKENS / (time.perf_counter() - start))
    results = [
        result(f"cluster.decode.tokens_per_s.streams{streams}", values, "tokens/s")
        for streams, values in speeds.items()
    ]
    ratios = [many / one for many, one in zip(speeds[STREAMS[-1]], speeds[1], strict=True)]
    return [*results, result("cluster.decode.ratio_streams32_to_1", ratios, "ratio", RATIO)]
