"""Which samples of a kernel count: those in whose moments the machine was its own.

A core of a virtual machine is shared with neighbours that our own load does not show: its register rate
falls to a half or a quarter for seconds, and a kernel that also needs caches and memory falls further than
the rate it is held against. So the machine's limits are probed right before and right after every sample; a
sample counts if both probes came near the best of the whole run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

RATE_SHARE = 0.9
"""Of the best register rate: below it somebody else was on the core. It repeats within 2 % otherwise."""

BANDWIDTH_SHARE = 0.8
"""Of the best read rate, which also differs by 10 to 15 % between quiet moments."""

TRIES = 6
"""Samples at most, in multiples of the calm ones that are wanted."""


@dataclass(frozen=True)
class Probe:
    """What the machine did: operations a second between registers, bytes a second out of memory.

    The latter is infinite where no memory limits the sample.
    """

    rate: float
    bandwidth: float = inf

    def limit(self, intensity: float) -> float:
        """Operations a second of a kernel that does `intensity` operations a byte."""
        return min(self.rate, intensity * self.bandwidth)


@dataclass(frozen=True)
class Sample:
    """One run of a kernel between two probes."""

    seconds: float
    before: Probe
    after: Probe

    def fraction(self, operations: float, bytes: float) -> float:
        """Of what the machine could have done, by the mean of the two probes."""
        intensity = operations / bytes
        limit = (self.before.limit(intensity) + self.after.limit(intensity)) / 2
        return operations / self.seconds / limit


def best_of(probes: Sequence[Probe]) -> Probe:
    """The best of each limit; a bandwidth that was not probed is none."""
    measured = [probe.bandwidth for probe in probes if probe.bandwidth < inf]
    return Probe(max(probe.rate for probe in probes), max(measured, default=inf))


def is_calm(sample: Sample, best: Probe) -> bool:
    """Whether both probes of a sample came near the best."""
    return all(
        probe.rate >= RATE_SHARE * best.rate
        and (probe.bandwidth == inf or probe.bandwidth >= BANDWIDTH_SHARE * best.bandwidth)
        for probe in (sample.before, sample.after)
    )


def calm_ones(samples: Sequence[Sample], best: Probe) -> list[Sample]:
    return [sample for sample in samples if is_calm(sample, best)]


def enough(samples: Sequence[Sample], best: Probe, wanted: int) -> bool:
    """Whether to stop: `wanted` samples were calm, or the machine has had its chances."""
    return len(samples) >= TRIES * wanted or len(calm_ones(samples, best)) >= wanted
