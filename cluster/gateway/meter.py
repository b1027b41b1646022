"""What the gateway counts of its requests. Plain numbers: a token costs one clock call and one bisection."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from cluster.gateway.line import smoothed

Clock = Callable[[], float]

FIRST_TOKEN_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
BETWEEN_TOKENS_S = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0),
    *(20.0, 40.0, 80.0),
)
WHOLE_S = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
"""Upper bounds that dashboards for vLLM's metrics expect; shorter times than the first are its bucket's."""

FAILED = "error"
COMPLETE = frozenset({"stop", "length"})
"""Reasons of those that got all that they asked for."""


class Histogram:
    """Counts by upper bound (inclusive), and the sum. Written by one thread."""

    __slots__ = ("_counts", "bounds", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.total = 0.0
        self._counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        return sum(self._counts)

    def cumulative(self) -> list[tuple[str, float]]:
        """(upper bound, observations up to it), as the Prometheus text format wants them."""
        bounds = [*map(str, self.bounds), "+Inf"]
        return list(zip(bounds, map(float, accumulate(self._counts)), strict=True))


@dataclass
class Span:
    """count of something, and the seconds that all of it took together."""

    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.seconds += seconds


@dataclass
class Meter:
    """Counts since the start; changed on the gateway's loop only. Plain numbers may be read from any thread.

    sequences: those now at hand whose end has not come; queued: those of which no router has sent anything.
    finished: requests by reason, FAILED among them. succeeded, failed: with the time from submission to the
    end. replayed: sequences that a router went on with after another was lost. service_s: mean time of late
    for which a router has a sequence, of those that got all that they asked for; 0 while unknown. last_end:
    seconds since 1970 of the last one that succeeded, 0 before.
    """

    clock: Clock = time.monotonic
    wall: Clock = time.time
    first_token: Histogram = field(default_factory=lambda: Histogram(FIRST_TOKEN_S))
    between_tokens: Histogram = field(default_factory=lambda: Histogram(BETWEEN_TOKENS_S))
    whole: Histogram = field(default_factory=lambda: Histogram(WHOLE_S))
    sequences: int = 0
    queued: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    finished: dict[str, int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)
    succeeded: Span = field(default_factory=Span)
    failed: Span = field(default_factory=Span)
    replayed: int = 0
    service_s: float = 0.0
    last_end: float = 0.0
    last_token: float = float("-inf")

    def request(self, prompt_tokens: int) -> RequestMeter:
        self.prompt_tokens += prompt_tokens
        return RequestMeter(self)

    def refuse(self, error: str) -> None:
        """A request that no router heard of. error: class name."""
        self.refused[error] = self.refused.get(error, 0) + 1


class RequestMeter:
    """One request, from its submission to a router on."""

    __slots__ = ("_began", "_counted", "_last", "_let_in", "_meter", "_queued", "_running", "_stopped")

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._began = meter.clock()
        self._last = 0.0
        self._let_in: float | None = None
        self._stopped = 0.0
        self._counted = False
        self._queued = self._running = True
        meter.queued += 1
        meter.sequences += 1

    def token(self) -> None:
        meter, now = self._meter, self._meter.clock()
        meter.generated_tokens += 1
        meter.last_token = now
        if self._last:
            meter.between_tokens.observe(now - self._last)
        else:
            meter.first_token.observe(now - self._began)
            self._start()
        self._last = now

    def let_in(self) -> None:
        """A router has it now."""
        self._let_in = self._meter.clock()

    def stop(self, reason: str) -> None:
        """It has ended at its router, or failed; whoever reads it may still be reading."""
        self._stopped = self._meter.clock()
        if self._let_in is not None and reason in COMPLETE:
            self._meter.service_s = smoothed(self._meter.service_s, self._stopped - self._let_in)
        self._leave()

    def end(self, reason: str) -> None:
        """reason: why it finished, or FAILED. Only the first call counts; time runs until `stop`."""
        if self._counted:
            return
        self._counted = True
        self._leave()
        meter = self._meter
        seconds = (self._stopped or meter.clock()) - self._began
        meter.finished[reason] = meter.finished.get(reason, 0) + 1
        meter.whole.observe(seconds)
        if reason == FAILED:
            meter.failed.add(seconds)
        else:
            meter.succeeded.add(seconds)
            meter.last_end = meter.wall()

    def _start(self) -> None:
        if self._queued:
            self._queued = False
            self._meter.queued -= 1

    def _leave(self) -> None:
        self._start()
        if self._running:
            self._running = False
            self._meter.sequences -= 1
