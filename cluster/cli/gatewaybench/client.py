"""The load's client: sends every request at its moment, whatever became of those before."""

from __future__ import annotations

import asyncio
import gc
import random
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol, TypeVar

import grpc
import uvloop

from cluster.cli.bench_gateway import TEXT
from cluster.cli.gatewaybench.arrivals import Arrival, Size, length
from cluster.cli.gatewaybench.figures import DONE, LOST, REFUSED, Fate, Outcome
from cluster.fleet.control import settle
from protos import generation_pb2 as pb
from protos import generation_pb2_grpc

Answer = TypeVar("Answer")

DEADLINE_S = 60.0
RAMP = 0.25
OWN_CONNECTION = (("grpc.use_local_subchannel_pool", 1),)
"""Of a channel: else all of an address share one."""

CHANNELS = 4
"""Connections that the requests take in turn: a single one would have one flow-control window for all."""


class Send(Protocol):
    """One request, at its moment (time.monotonic seconds). Answers with what became of it."""

    async def __call__(self, number: int, size: Size, moment: float) -> Fate: ...


async def offer(send: Send, arrivals: Sequence[Arrival]) -> Outcome:
    """Open loop. Returns when every request has its fate. A request that is sent late (this process had no
    time) is timed from the moment at which it was to be sent."""
    outcome = Outcome(length(arrivals))
    start = time.monotonic()
    async with asyncio.TaskGroup() as group:
        tasks = []
        for number, arrival in enumerate(arrivals):
            moment = start + arrival.at
            await asyncio.sleep(moment - time.monotonic())
            tasks.append(group.create_task(send(number, arrival.size, moment)))
    outcome.fates = [task.result() for task in tasks]
    return outcome


async def saturate(send: Send, size: Size, streams: int, seconds: float) -> float:
    """Closed loop: requests a second that `streams` clients get through, each of which sends its next request
    when it has its answer. The first RAMP of the time, in which they all begin together, does not count."""
    start, done = time.monotonic(), 0
    counted, end = start + RAMP * seconds, start + seconds

    async def client(number: int) -> None:
        nonlocal done
        while time.monotonic() < end:
            fate = await send(number, size, time.monotonic())
            number += streams
            done += fate.fate == DONE and counted <= time.monotonic() < end

    async with asyncio.TaskGroup() as group:
        for number in range(streams):
            group.create_task(client(number))
    return done / (end - counted)


def running(work: Coroutine[Any, Any, Answer]) -> Answer:
    """Its answer, from an event loop that keeps as little as it can of the time that it measures: what this
    process has imported is left out of garbage collections, each of which would hold up every request."""
    settle()
    try:
        return uvloop.run(work)
    finally:
        gc.unfreeze()


class Caller:
    """Sends requests to one gateway. Request n always has the same prompt, drawn from a text's tokens."""

    def __init__(self, stubs: Sequence[generation_pb2_grpc.GenerationAsyncStub]) -> None:
        self._stubs = stubs
        self._ids: list[int] = []

    async def prepare(self) -> None:
        """Raises grpc.RpcError if nobody answers. Opens every connection."""
        for stub in self._stubs:
            request = pb.TokenizeRequest(text=TEXT)
            self._ids = list((await stub.Tokenize(request, timeout=DEADLINE_S)).token_ids)

    async def generate(self, number: int, size: Size, moment: float) -> Fate:
        """A stream, read to its end."""
        tokens: list[float] = []
        name, finished = "", False
        try:
            async for answer in self.open(number, size):
                name = name or answer.start.request_id
                tokens += [time.monotonic() - moment] * len(answer.token_ids)
                finished = answer.HasField("finish")
        except grpc.RpcError as error:
            return failed(error, moment, accepted=bool(name))
        return answered(moment, tokens, finished, size, name)

    def open(self, number: int, size: Size) -> Any:
        """The call of such a stream, for whoever reads it in another way."""
        return self._stub(number).Generate(request_of(self._ids, number, size), timeout=DEADLINE_S)

    async def score(self, number: int, size: Size, moment: float) -> Fate:
        """A Score call over the prompt; `new` plays no part."""
        request = pb.ScoreRequest(token_ids=_prompt(self._ids, number, size))
        try:
            answer = await self._stub(number).Score(request, timeout=DEADLINE_S)
        except grpc.RpcError as error:
            return failed(error, moment, accepted=False)
        end = time.monotonic() - moment
        return Fate(moment, DONE if len(answer.logprobs) == size.prompt - 1 else LOST, end, (end,))

    def _stub(self, number: int) -> generation_pb2_grpc.GenerationAsyncStub:
        return self._stubs[number % len(self._stubs)]


@asynccontextmanager
async def calling(address: str) -> AsyncIterator[Caller]:
    channels = [grpc.aio.insecure_channel(address, OWN_CONNECTION) for _ in range(CHANNELS)]
    try:
        caller = Caller([generation_pb2_grpc.GenerationStub(channel) for channel in channels])
        await caller.prepare()
        yield caller
    finally:
        for channel in channels:
            await channel.close(None)


def request_of(ids: Sequence[int], number: int, size: Size) -> pb.GenerateRequest:
    """Request `number`, the same each time: a prompt drawn from `ids`."""
    sampling = pb.Sampling(max_tokens=size.new, ignore_eos=True)
    return pb.GenerateRequest(token_ids=_prompt(ids, number, size), sampling=sampling)


def _prompt(ids: Sequence[int], number: int, size: Size) -> pb.TokenIds:
    return pb.TokenIds(ids=random.Random(number).choices(ids, k=size.prompt))


def answered(moment: float, tokens: Sequence[float], finished: bool, size: Size, name: str) -> Fate:
    """Of a stream that has ended without an error. tokens: when each came, in seconds after `moment`."""
    end = time.monotonic() - moment
    whole = finished and len(tokens) == size.new
    return Fate(moment, DONE if whole else LOST, end, tuple(tokens), request_id=name)


def failed(error: grpc.RpcError, moment: float, accepted: bool) -> Fate:
    refused = not accepted and error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    end = time.monotonic() - moment
    return Fate(moment, REFUSED if refused else LOST, end, error=f"{error.code().name}: {error.details()}")
