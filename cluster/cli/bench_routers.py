"""What clients of a gateway see of a router that dies or freezes: cases of `moemesh bench failover`."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise, zip_longest
from typing import TypeVar

import grpc

from cluster.cli.report import Result, Target, percentile, result
from cluster.compute.weights import kv_dtype
from cluster.config import EngineConfig, GatewayConfig
from cluster.controller.members import Role
from cluster.errors import StartFailed, Unavailable
from cluster.experiments.live.cluster import LiveCluster, LiveNode, expert_model, live_cluster
from cluster.experiments.live.failover import Asking, Course, Observed, summed_up
from cluster.experiments.live.faults import Fault
from cluster.experiments.live.pace import row_rate
from cluster.experiments.live.streams import Stream
from cluster.gateway.served import ServedModel
from cluster.gateway.service import GatewayService
from cluster.router.kv import longest_sequence
from cluster.types import EngineRequest
from protos import generation_pb2 as pb
from protos import generation_pb2_grpc

VICTIM = "router-0"
ENGINE = EngineConfig()
CONNECT_S = 10.0
POLL_S = 0.01
Done = TypeVar("Done")

BEYOND_REPLAY = Target(must=2.0, at_most=True, reference="gap less the time to compute tokens again")
FAILED = Target(must=0, at_most=True)
IDENTICAL = Target(must=1.0, reference="one process")
WRONG = Target(must=0, at_most=True, reference="one process")


@dataclass(frozen=True)
class RouterLoss:
    """wrong: tokens that were missing, repeated or others. replayed: streams that went on at the other
    router. replay_s: seconds that it takes to compute as many tokens as they had, and one more each, when
    nobody else asks for anything."""

    seen: Observed
    wrong: int
    replayed: int
    replay_s: float


def observe_routers(asking: Asking, rates: Sequence[float], fault: Fault, course: Course) -> RouterLoss:
    """Serve through a gateway with two routers while `fault` happens to one of them.

    rates: rows per second of each node. Raises StartFailed, Unavailable.
    """
    library, requests, expected = asking.library, asking.requests, asking.expected
    model = expert_model(library)
    nodes = [LiveNode(row_rate(rate, model)) for rate in rates]
    with live_cluster(library, nodes, [ENGINE] * 2) as live, gateway_of(live) as gateway:

        def happen() -> float:
            time.sleep(course.warm_s + course.before_s)
            fault.happen_to(live.processes[VICTIM])
            begin = time.monotonic()
            time.sleep(course.after_s)
            return begin

        streams, begin = asyncio.run(streams_through(gateway.address, requests, happen))
        replayed = gateway.stats()["replayed"]
        lengths = [
            len(requests[stream.request].prompt_ids) + sum(at < begin for at in stream.times)
            for stream in most_delayed(streams, begin, replayed)
        ]
        replay_s = asyncio.run(first_tokens(gateway.address, lengths, library.spec.vocab))
    wrong = sum(wrong_tokens(stream, expected[stream.request]) for stream in streams)
    return RouterLoss(summed_up(streams, expected, begin, course, 0.0), wrong, replayed, replay_s)


def most_delayed(streams: Sequence[Stream], begin: float, count: int) -> list[Stream]:
    """Those with the longest gaps around or after `begin`."""

    def gap(stream: Stream) -> float:
        return max((b - a for a, b in pairwise(stream.times) if b >= begin), default=0.0)

    return sorted(streams, key=gap, reverse=True)[:count]


async def first_tokens(address: str, lengths: Sequence[int], vocab: int) -> float:
    """Seconds until prompts of these lengths, sent together, have a token each. Drawn at random, so that no
    KV page is found. Raises Unavailable if one fails."""
    draw = random.Random(len(lengths))
    prompts = [pb.TokenIds(ids=[draw.randrange(vocab) for _ in range(length)]) for length in lengths]
    async with grpc.aio.insecure_channel(address) as channel:
        stub = generation_pb2_grpc.GenerationStub(channel)
        sampling = pb.Sampling(max_tokens=1)
        begin = time.monotonic()
        calls = [stub.Generate(pb.GenerateRequest(token_ids=ids, sampling=sampling)) for ids in prompts]
        streams = [Stream(place) for place in range(len(calls))]
        await asyncio.gather(*map(_read, calls, streams))
    if errors := [stream.error for stream in streams if stream.error]:
        raise Unavailable(f"the router that is left does not compute: {errors[0]}")
    return time.monotonic() - begin


@contextmanager
def gateway_of(live: LiveCluster) -> Iterator[GatewayService]:
    """A gateway of this process, connected to all its routers, so that they share the first streams. Raises
    StartFailed."""
    library = live.library
    dtype = kv_dtype(library.manifest.trunk.floating, ENGINE.kv)
    context = longest_sequence(library.spec, ENGINE, dtype)
    served = ServedModel.of(library, context, live.variant)
    service = GatewayService(GatewayConfig(port=0), served, controller=live.address)
    service.start()
    try:
        members = live.controller.status()["members"]
        routers = {str(m["id"]): str(m["address"]) for m in members if m["role"] == Role.ROUTER.value}
        service.update(routers)
        deadline = time.monotonic() + CONNECT_S
        while service.stats()["routers"] < len(routers):
            if time.monotonic() > deadline:
                raise StartFailed(f"the gateway did not reach {len(routers)} routers within {CONNECT_S:g} s")
            time.sleep(POLL_S)
        yield service
    finally:
        service.shutdown(grace_s=0.0)


async def streams_through(
    address: str, requests: Sequence[EngineRequest], action: Callable[[], Done]
) -> tuple[list[Stream], Done]:
    """Keep one stream of every request going, each again when it ends, while `action` runs on another thread.

    Returns all streams, those that were under way at the end too.
    """
    streams: list[Stream] = []
    async with grpc.aio.insecure_channel(address) as channel:
        stub = generation_pb2_grpc.GenerationStub(channel)

        async def keep(place: int) -> None:
            while True:
                streams.append(Stream(place))
                await _read(stub.Generate(wire(requests[place]), wait_for_ready=True), streams[-1])

        readers = [asyncio.create_task(keep(place)) for place in range(len(requests))]
        done = await asyncio.to_thread(action)
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
    return streams, done


async def _read(call: grpc.aio.UnaryStreamCall[pb.GenerateRequest, pb.GenerateResponse], to: Stream) -> None:
    try:
        async for part in call:
            to.tokens += part.token_ids
            to.times += [time.monotonic()] * len(part.token_ids)
    except grpc.aio.AioRpcError as error:
        to.error = f"{error.code().name}: {error.details()}"
    to.ended = True


def wire(request: EngineRequest) -> pb.GenerateRequest:
    """As a client asks for it, by token ids."""
    params = request.sampling
    sampling = pb.Sampling(
        max_tokens=params.max_tokens,
        temperature=params.temperature,
        seed=params.seed,
        ignore_eos=params.ignore_eos,
    )
    return pb.GenerateRequest(token_ids=pb.TokenIds(ids=request.prompt_ids), sampling=sampling)


def wrong_tokens(stream: Stream, tokens: Sequence[int]) -> int:
    """Places at which a stream has another token than it should, none, or one too many; of one that goes on,
    so far."""
    wanted = tokens if stream.ended else tokens[: len(stream.tokens)]
    return sum(a != b for a, b in zip_longest(stream.tokens, wanted))


def promised_results(name: str, seen: Sequence[Observed], wrong: Sequence[int]) -> list[Result]:
    """What must hold whoever was lost. wrong: tokens that were missing, repeated or others, of each trial."""
    return [
        result(f"{name}.failed_requests", [each.failed for each in seen], "requests", FAILED),
        result(f"{name}.tokens_identical", [float(each.identical) for each in seen], "ratio", IDENTICAL),
        result(f"{name}.tokens_lost_or_repeated", wrong, "tokens", WRONG),
    ]


def before_results(name: str, seen: Sequence[Observed], course: Course) -> list[Result]:
    """How it went before the loss."""
    gaps = [1e3 * percentile(each.gaps_before.tolist(), 99) for each in seen]
    rates = [each.rate_before(course.before_s) for each in seen]
    return [
        result(f"{name}.tokens_per_s_before", rates, "tokens/s"),
        result(f"{name}.p99_gap_before", gaps, "ms"),
    ]


def router_results(name: str, trials: Sequence[RouterLoss], course: Course) -> list[Result]:
    seen = [each.seen for each in trials]
    replays = [each.replay_s for each in trials]
    beyond = [each.seen.longest_gap_s - each.replay_s for each in trials]
    return [
        *promised_results(name, seen, [each.wrong for each in trials]),
        result(f"{name}.replayed", [each.replayed for each in trials], "streams"),
        result(f"{name}.longest_gap", [each.longest_gap_s for each in seen], "s"),
        result(f"{name}.replay", replays, "s"),
        result(f"{name}.gap_beyond_replay", beyond, "s", BEYOND_REPLAY),
        *before_results(name, seen, course),
    ]
