"""When requests of a load come, and how large they are. Pure: the same arguments give the same load."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, repeat, takewhile
from pathlib import Path

from cluster.errors import ConfigError

POISSON, BURSTS = "poisson", "bursts"
PATTERNS = (POISSON, BURSTS)
BURST = 8
"""Requests that come together in `bursts`."""


@dataclass(frozen=True)
class Size:
    """Tokens of a request: of its prompt, and to generate."""

    prompt: int
    new: int


@dataclass(frozen=True)
class Arrival:
    """at: seconds from the beginning of the load."""

    at: float
    size: Size


def drawn(pattern: str, rate: float, seconds: float, size: Size, seed: int = 0) -> list[Arrival]:
    """Open-loop arrivals in [0, seconds), `rate` of them a second in the mean, whatever becomes of them.

    poisson: independent of each other. bursts: the same mean rate, BURST at a time. Raises ConfigError.
    """
    if not (math.isfinite(rate) and rate > 0 and math.isfinite(seconds) and seconds > 0):
        raise ConfigError("a load needs a rate and a length above 0")
    if pattern == POISSON:
        times = list(_poisson(rate, seconds, seed))
    elif pattern == BURSTS:
        times = [at for at in _poisson(rate / BURST, seconds, seed) for _ in range(BURST)]
    else:
        raise ConfigError(f"unknown arrivals {pattern!r}; known: {', '.join(PATTERNS)}, or a trace's file")
    return [Arrival(at, size) for at in times]


def _poisson(rate: float, seconds: float, seed: int) -> Iterator[float]:
    """Exponential gaps."""
    draw = random.Random(seed)
    return takewhile(lambda at: at < seconds, accumulate(draw.expovariate(each) for each in repeat(rate)))


def recorded(path: Path, speed: float = 1.0) -> list[Arrival]:
    """A trace: one JSON object a line, {"at": seconds, "prompt_tokens": n, "new_tokens": n}.

    speed: 2 replays it in half the time. Raises ConfigError naming the line.
    """
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); name a file of arrivals") from None
    arrivals = [_line(path, number, line, speed) for number, line in enumerate(lines, 1) if line.strip()]
    if not arrivals:
        raise ConfigError(f"{path} has no arrivals; write one JSON object a line")
    return sorted(arrivals, key=lambda arrival: arrival.at)


def _line(path: Path, number: int, line: str, speed: float) -> Arrival:
    try:
        fields = json.loads(line)
        at, prompt, new = float(fields["at"]), int(fields["prompt_tokens"]), int(fields["new_tokens"])
    except (ValueError, TypeError, LookupError):
        raise ConfigError(f"{path} line {number} lacks at, prompt_tokens or new_tokens") from None
    if not (math.isfinite(at) and at >= 0 and prompt > 0 and new > 0):
        raise ConfigError(f"{path} line {number} has a time below 0 or a request without tokens")
    return Arrival(at / speed, Size(prompt, new))


def length(arrivals: Sequence[Arrival]) -> float:
    """Seconds from the beginning to the last arrival."""
    return max((arrival.at for arrival in arrivals), default=0.0)
