"""From what became of every request to figures: percentiles with confidence intervals, goodput. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from cluster.cli.report import NO_TARGET, Result, Target, percentile, result_of
from cluster.errors import ConfigError

RESAMPLES = 400
CONFIDENCE = 95.0
PERCENTILES = (50, 90, 99)

DONE, REFUSED, LOST = "done", "refused", "lost"


@dataclass(frozen=True)
class Fate:
    """What became of one request. Times in seconds from the moment at which it was to be sent.

    fate: DONE, REFUSED (before it was accepted, with RESOURCE_EXHAUSTED), or LOST: accepted, and not
    answered to its end; or never answered at all. tokens_at: when each token was read.
    """

    at: float
    fate: str
    end: float
    tokens_at: tuple[float, ...] = ()
    error: str = ""
    request_id: str = ""

    @property
    def first_token(self) -> float:
        return self.tokens_at[0]

    @property
    def gaps(self) -> list[float]:
        """Between tokens that follow each other."""
        return [b - a for a, b in pairwise(self.tokens_at)]


@dataclass(frozen=True)
class Slo:
    """What a request must keep to count as good: ttft, and the mean time between its tokens. Seconds."""

    ttft: float = math.inf
    itl: float = math.inf

    @staticmethod
    def parse(text: str) -> Slo:
        """ "ttft=200,itl=50": milliseconds. Raises ConfigError."""
        values: dict[str, float] = {}
        for part in filter(None, text.split(",")):
            name, _, value = part.partition("=")
            try:
                values[name.strip()] = float(value) / 1e3
            except ValueError:
                raise ConfigError(f"{part!r} is no objective; write ttft=200,itl=50 (ms)") from None
        if set(values) - {"ttft", "itl"} or not all(value > 0 for value in values.values()):
            raise ConfigError(f"{text!r} is no objective; write ttft=200,itl=50 (ms)")
        return Slo(**values)

    def kept_by(self, one: Fate) -> bool:
        gaps = one.gaps
        return one.fate == DONE and one.first_token <= self.ttft and sum(gaps) <= self.itl * len(gaps)


@dataclass
class Outcome:
    """Of one load. seconds: from its first to its last arrival."""

    seconds: float
    fates: list[Fate] = field(default_factory=list)

    def of(self, fate: str) -> list[Fate]:
        return [one for one in self.fates if one.fate == fate]

    def end_to_end(self) -> list[float]:
        return [one.end for one in self.of(DONE)]

    def first_tokens(self) -> list[float]:
        return [one.first_token for one in self.of(DONE)]

    def gaps(self) -> list[float]:
        return [gap for one in self.of(DONE) for gap in one.gaps]


def interval(samples: Sequence[float], percent: float, seed: int = 0) -> tuple[float, float]:
    """Bootstrap confidence interval of a percentile (Efron 1979, the percentile method)."""
    values, draw = np.sort(np.asarray(samples, np.float64)), np.random.default_rng(seed)
    rank = max(0, math.ceil(len(values) * percent / 100) - 1)
    # The sample at a rank of a resample is the original at the rank-th smallest of the drawn places.
    places = [np.partition(draw.integers(0, len(values), len(values)), rank)[rank] for _ in range(RESAMPLES)]
    tail = (100 - CONFIDENCE) / 2
    low, high = np.percentile(places, [tail, 100 - tail], method="inverted_cdf").astype(int)
    return float(values[low]), float(values[high])


def at_percentile(
    id: str, samples: Sequence[float], percent: float, unit: str, target: Target = NO_TARGET
) -> Result:
    """spread: the confidence interval; runs: how many samples."""
    low, high = interval(samples, percent)
    return result_of(id, percentile(samples, percent), (low, high), unit, len(samples), target)


def results_of(name: str, outcome: Outcome, slo: Slo) -> Iterable[Result]:
    """Figures of one load under `name`."""
    times = {"ttft": outcome.first_tokens(), "itl": outcome.gaps(), "e2e": outcome.end_to_end()}
    for kind, samples in times.items():
        for percent in PERCENTILES if samples else ():
            yield at_percentile(f"{name}.{kind}_p{percent}", _ms(samples), percent, "ms")
    yield count(f"{name}.sent", len(outcome.fates))
    yield rate(f"{name}.throughput", len(outcome.of(DONE)), outcome.seconds)
    yield rate(f"{name}.goodput", sum(map(slo.kept_by, outcome.fates)), outcome.seconds)
    yield count(f"{name}.refused", len(outcome.of(REFUSED)))
    yield count(f"{name}.lost", len(outcome.of(LOST)), Target(0, at_most=True))


def refusal(name: str, outcome: Outcome, target: Target) -> Iterable[Result]:
    """How long a refused request waited for that answer."""
    times = [one.end for one in outcome.of(REFUSED)]
    for percent in PERCENTILES if times else ():
        judged = target if percent == PERCENTILES[-1] else NO_TARGET
        yield at_percentile(f"{name}.refusal_p{percent}", _ms(times), percent, "ms", judged)


def count(id: str, value: float, target: Target = NO_TARGET) -> Result:
    return result_of(id, value, (value, value), "requests", 1, target)


def rate(id: str, requests: float, seconds: float, target: Target = NO_TARGET) -> Result:
    value = requests / seconds if seconds else 0.0
    return result_of(id, value, (value, value), "requests/s", 1, target)


def _ms(seconds: Sequence[float]) -> list[float]:
    return [1e3 * value for value in seconds]
