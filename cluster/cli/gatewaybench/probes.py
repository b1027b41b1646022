"""First tokens as grpcio's ordinary client sees them: the stub that blocks, a thread for each call.

The asynchronous one adds its own way between a poller's thread and a loop, 0.4 ms of a bare service's 1.8,
which no gateway can take away (docs/decisions/0036).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import grpc

from cluster.cli.bench_gateway import TEXT
from cluster.cli.gatewaybench.arrivals import Arrival, length
from cluster.cli.gatewaybench.client import CHANNELS, DEADLINE_S, OWN_CONNECTION, answered, failed, request_of
from cluster.cli.gatewaybench.figures import Fate, Outcome
from protos import generation_pb2 as pb
from protos import generation_pb2_grpc

THREADS = 8
"""Calls under way at once: at the rate of the probes there are rarely two."""


def probe(address: str, arrivals: Sequence[Arrival]) -> Outcome:
    """Each at its moment, timed from when its thread calls. Raises grpc.RpcError if nobody answers."""
    outcome = Outcome(length(arrivals))
    with _calling(address) as caller, ThreadPoolExecutor(THREADS, "probe") as threads:
        start, sent = time.monotonic(), []
        for number, arrival in enumerate(arrivals):
            time.sleep(max(start + arrival.at - time.monotonic(), 0.0))
            sent.append(threads.submit(caller.generate, number, arrival))
        outcome.fates = [one.result() for one in sent]
    return outcome


class _Caller:
    """As client.Caller."""

    def __init__(self, stubs: Sequence[generation_pb2_grpc.GenerationStub]) -> None:
        self._stubs = stubs
        for stub in stubs:  # opens every connection
            self._ids = list(stub.Tokenize(pb.TokenizeRequest(text=TEXT), timeout=DEADLINE_S).token_ids)

    def generate(self, number: int, arrival: Arrival) -> Fate:
        request, stub = request_of(self._ids, number, arrival.size), self._stubs[number % len(self._stubs)]
        tokens: list[float] = []
        name, finished, moment = "", False, time.monotonic()
        try:
            for answer in stub.Generate(request, timeout=DEADLINE_S):
                name = name or answer.start.request_id
                tokens += [time.monotonic() - moment] * len(answer.token_ids)
                finished = answer.HasField("finish")
        except grpc.RpcError as error:
            return failed(error, moment, accepted=bool(name))
        return answered(moment, tokens, finished, arrival.size, name)


@contextmanager
def _calling(address: str) -> Iterator[_Caller]:
    with ExitStack() as stack:
        channels = [
            stack.enter_context(grpc.insecure_channel(address, OWN_CONNECTION)) for _ in range(CHANNELS)
        ]
        yield _Caller([generation_pb2_grpc.GenerationStub(channel) for channel in channels])
