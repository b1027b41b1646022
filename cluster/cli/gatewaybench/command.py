"""The verb `moemesh bench gateway`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from cluster.cli.gatewaybench import alone, served
from cluster.cli.gatewaybench.arrivals import PATTERNS, Arrival, drawn, recorded
from cluster.cli.gatewaybench.figures import Outcome, Slo
from cluster.cli.gatewaybench.parts import Part
from cluster.cli.local import local_engine
from cluster.cli.report import Result
from cluster.config import EngineConfig

Progress = Callable[[str], None]
Gateway = Callable[[], AbstractContextManager[str]]


@dataclass(frozen=True)
class Lengths:
    """Seconds of every part."""

    overhead: float
    score: float
    overload: float
    load: float


PRESETS = {"minimal": Lengths(4.0, 4.0, 12.0, 10.0), "full": Lengths(20.0, 20.0, 60.0, 60.0)}


@dataclass(frozen=True)
class Load:
    """arrivals: a pattern's name, or a trace's file. seconds: 0 for the preset's."""

    arrivals: str
    rate: float
    seconds: float

    def requests(self, lengths: Lengths) -> list[Arrival]:
        """Raises ConfigError."""
        if self.arrivals not in PATTERNS and Path(self.arrivals).exists():
            return recorded(Path(self.arrivals))
        return drawn(self.arrivals, self.rate, self.seconds or lengths.load, served.REQUEST)


@dataclass(frozen=True)
class Bench:
    """gateway: enters a cluster, whose address it gives; asked for by the parts that need one."""

    lengths: Lengths
    load: Load
    slo: Slo
    gateway: Gateway

    def measure(self, parts: tuple[Part, ...], say: Progress) -> tuple[list[Result], dict[str, Outcome]]:
        """In the order of Part; outcomes of loads by name, to be drawn. Raises MoemeshError."""
        results: list[Result] = []
        outcomes: dict[str, Outcome] = {}
        arrivals = self.load.requests(self.lengths) if Part.load in parts else []
        if Part.overhead in parts:
            say("what the gateway adds to a first token")
            results += alone.measure_overhead(self.lengths.overhead)
        if Part.idle in parts:
            say("streams that wait")
            results += alone.measure_idle_streams()
        if Part.score in parts:
            say("the engine alone")
            with local_engine(config=EngineConfig(prefix_cache=False)) as engine:
                results += served.score_alone(engine, self.lengths.score / 4)
        if {Part.score, Part.overload, Part.load} & set(parts):
            with self.gateway() as address:
                results += self._on_cluster(address, parts, arrivals, outcomes, say)
        return results, outcomes

    def _on_cluster(
        self,
        address: str,
        parts: tuple[Part, ...],
        arrivals: list[Arrival],
        outcomes: dict[str, Outcome],
        say: Progress,
    ) -> list[Result]:
        results: list[Result] = []
        if Part.score in parts:
            say(f"{served.SCORE_RATE:g} scores a second")
            results += served.measure_score(address, self.lengths.score)
        if Part.load in parts:
            say(f"{len(arrivals)} requests")
            found, outcomes["load"] = served.measure_load(address, arrivals, self.slo)
            results += found
        if Part.overload in parts:
            found, overload = served.measure_overload(address, self.lengths.overload, self.slo, say)
            results += found
            outcomes[f"{served.BELOW:g} of capacity"] = overload.below
            outcomes[f"{served.BEYOND:g} times capacity"] = overload.beyond
        return results
