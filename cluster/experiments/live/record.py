"""A trace of a cluster that serves: what all of its routers' gates choose, merged in the order of time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from types import TracebackType

from cluster.dispatch.client import ControlClient
from cluster.dispatch.handshake import Identity
from cluster.dispatch.kinds import Kind
from cluster.errors import ConfigError, Unavailable
from cluster.experiments.routing import Header, Trace
from cluster.experiments.traces import from_records
from cluster.router.recorder import GateRecord
from cluster.router.tracing import records_of
from cluster.types import RequestId

POLL_S = 0.25
ANSWER_S = 30.0
"""A router answers between two steps."""


@dataclass(frozen=True)
class Until:
    """When a recording ends: at the first of these that is reached; 0: never for that reason.

    Raises ConfigError if it would never end."""

    seconds: float = 10.0
    steps: int = 0
    tokens: int = 0

    def __post_init__(self) -> None:
        if min(self.seconds, self.steps, self.tokens) < 0 or not (self.seconds or self.steps or self.tokens):
            raise ConfigError("say for how many seconds, steps or tokens to record; one must be above 0")


class LiveTrace:
    """Records while its context is open; `traces` may be read once. dropped: tokens that routers had no room
    for, known at the end."""

    def __init__(
        self,
        routers: Mapping[str, str],
        source: str,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        key: bytes = b"",
    ) -> None:
        """routers: name to address; key: of their cluster.

        Entering raises Unavailable where there is none, and what one answers.
        """
        if not routers:
            raise Unavailable("no router is ready; see `moemesh status`")
        self.dropped = 0
        self._routers, self._source, self._clock, self._sleep = dict(routers), source, clock, sleep
        self._identity = Identity("tool", "trace", key=key)
        self._clients: dict[str, ControlClient] = {}
        self._began: dict[str, float] = {}
        self._numbers: dict[RequestId, int] = {}
        self._waiting: list[GateRecord] = []
        self._stack = ExitStack()

    def __enter__(self) -> LiveTrace:
        with ExitStack() as stack:
            shapes = []
            for name, address in self._routers.items():
                client = ControlClient(address, identity=self._identity)
                self._clients[name] = stack.enter_context(client)
                shapes.append(client.call(Kind.TRACE, {"do": "start"}, timeout_s=ANSWER_S).header)
                self._began[name] = self._clock()
            first = shapes[0]
            self.header = Header(
                int(first["experts"]), int(first["top_k"]), tuple(first["layers"]), self._source
            )
            self._zero = min(self._began.values())
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()  # a router stops when its client has gone

    def traces(self, until: Until) -> Iterator[Trace]:
        """One Trace for each batch of a router, numbered in the order of their first gates."""
        began, steps, tokens, over = self._clock(), 0, 0, False
        while not over:
            left = began + until.seconds - self._clock() if until.seconds else POLL_S
            over = left <= 0
            if not over:
                self._sleep(min(POLL_S, left))
            for trace in self._take("stop" if over else "take"):
                yield replace(trace, step=trace.step * 0 + steps)
                steps, tokens = steps + 1, tokens + len(trace)
                if (until.steps and steps >= until.steps) or (until.tokens and tokens >= until.tokens):
                    return

    def _take(self, action: str) -> Iterator[Trace]:
        """What routers have recorded. What began while they were being asked waits for the next time, so that
        no router's steps come before another's that are older; at the end nothing waits."""
        asked = self._clock()
        dropped = 0
        for name, client in self._clients.items():
            frame = client.call(Kind.TRACE, {"do": action}, timeout_s=ANSWER_S)
            dropped += int(frame.header["dropped"])
            for record in records_of(frame.payload):
                names = tuple((RequestId(f"{name}/{request}"), rows) for request, rows in record.requests)
                at = record.time + self._began[name] - self._zero
                self._waiting.append(replace(record, requests=names, time=at))
        self.dropped = dropped
        self._waiting.sort(key=lambda record: record.time)
        ripe = [each for each in self._waiting if action == "stop" or each.time + self._zero <= asked]
        self._waiting = self._waiting[len(ripe) :]
        yield from from_records(self.header, ripe, numbers=self._numbers)
