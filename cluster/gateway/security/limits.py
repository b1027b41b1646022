"""How often and how much at once a key may ask. Decisions take values and `now`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from cluster.errors import RateLimited
from cluster.gateway.caller import Caller

BURST_S = 10.0
"""A key that has rested may ask at once for what its rate gives in this time."""

BUSY_RETRY_S = 1.0


@dataclass(frozen=True)
class Bucket:
    """Token bucket (Turner 1986). level: requests that may be asked for at once, as of `at`, seconds."""

    level: float
    at: float


def capacity(per_minute: int) -> float:
    return max(1.0, per_minute * BURST_S / 60)


def take(bucket: Bucket | None, per_minute: int, now: float) -> tuple[Bucket, float]:
    """One request out of the bucket (None: untouched so far). Returns it, and the seconds to wait first:
    0 if the request may go, else the bucket has kept its level."""
    rate, full = per_minute / 60, capacity(per_minute)
    level = full if bucket is None else min(full, bucket.level + (now - bucket.at) * rate)
    if level < 1:
        return Bucket(level, now), (1 - level) / rate
    return Bucket(level - 1, now), 0.0


class KeyLimits:
    """Counts by key, on the gateway's loop. Every `enter` that returns needs its `leave`."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._buckets: dict[str, Bucket] = {}
        self._running: Counter[str] = Counter()

    def enter(self, who: Caller, ending: int = 0) -> None:
        """ending: requests of this key that end if this one may go. Raises RateLimited, with the seconds
        until it may work."""
        if who.concurrent and self._running[who.id] - ending >= who.concurrent:
            raise RateLimited(
                f"this key may have {who.concurrent} requests at once; wait for one to end", BUSY_RETRY_S
            )
        if who.requests_per_minute:
            self._buckets[who.id], wait_s = take(
                self._buckets.get(who.id), who.requests_per_minute, self._clock()
            )
            if wait_s:
                raise RateLimited(
                    f"this key may ask {who.requests_per_minute} times a minute; try again in {wait_s:.1f} s",
                    wait_s,
                )
        self._running[who.id] += 1

    def leave(self, who: Caller) -> None:
        self._running[who.id] -= 1
        if not self._running[who.id]:
            del self._running[who.id]
