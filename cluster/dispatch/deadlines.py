"""How long a node may take to answer, from how long it has taken. Pure, but for what it has been told.

An answer is expected after its rows at the node's speed and its bytes at the link's; by how much real answers
were longer than that is remembered, and a high quantile of it, with a margin, is what a node is given.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from cluster.balance.links import fit_link
from cluster.types import NodeId

LATE_QUANTILE, LATE_MARGIN = 0.99, 4.0
LEAST_LATE_S, MOST_LATE_S = 0.25, 5.0
"""A process that shares its cores may not be scheduled for some 100 ms; a person notices a second."""

HEDGE_QUANTILE, HEDGE_MARGIN = 0.95, 1.5
LEAST_HEDGE_S = 0.005

BASE_S = 1e-3
"""Of every answer, however small: what a process that sleeps needs to wake up, and the router to look."""

LEAST_ANSWERS = 16
"""Before a node's times are believed."""

RECKON_EVERY = 8
"""Answers after which quantiles and bandwidth are reckoned anew: that costs more than a reply."""

DECAY = 1.0 - 1.0 / 256
FIRST, PER_OCTAVE, BUCKETS = -4.0, 4, 64
"""Buckets of the stretch, from 2^FIRST on, so many to a doubling."""


class Allowance(NamedTuple):
    """Seconds from the request: after `hedge_s` a second node may be asked too, after `late_s` it must be."""

    hedge_s: float
    late_s: float


UNKNOWN = Allowance(math.inf, MOST_LATE_S)


class Stretches:
    """A decaying histogram of how many times the expected an answer took."""

    def __init__(self) -> None:
        self._counts = np.zeros(BUCKETS)

    def add(self, stretch: float) -> None:
        place = math.floor((math.log2(max(stretch, 1e-9)) - FIRST) * PER_OCTAVE)
        self._counts *= DECAY
        self._counts[min(max(place, 0), BUCKETS - 1)] += 1

    def quantile(self, share: float) -> float:
        """The upper edge of the bucket in which it lies."""
        total = np.cumsum(self._counts)
        place = int(np.searchsorted(total, share * total[-1]))
        return float(2 ** (FIRST + (min(place, BUCKETS - 1) + 1) / PER_OCTAVE))


class NodeTimes:
    """What is known of one node's answers and of the link to it."""

    def __init__(self) -> None:
        self._stretches = Stretches()
        self._trips = np.zeros(6)
        self._answers = self._timed = 0
        self._s_per_byte = 0.0
        self._late = self._hedge = math.inf

    def answered(self, expected_s: float, seconds: float) -> None:
        """An answer that was expected after `expected_s` has come after `seconds`."""
        self._stretches.add(seconds / expected_s)
        self._answers += 1
        if self._answers >= LEAST_ANSWERS and self._answers % RECKON_EVERY == 0:
            self._late = LATE_MARGIN * self._stretches.quantile(LATE_QUANTILE)
            self._hedge = HEDGE_MARGIN * self._stretches.quantile(HEDGE_QUANTILE)

    def carried(self, seconds: float, bytes: float) -> None:
        """A round trip of so many bytes, both ways, took `seconds` beside the node's service."""
        self._trips *= DECAY
        self._trips += (1.0, seconds, bytes, seconds**2, bytes**2, bytes * seconds)
        self._timed += 1
        if self._timed % RECKON_EVERY == 0:
            bandwidth = fit_link(*self._trips.tolist()).bandwidth
            self._s_per_byte = 1.0 / bandwidth if bandwidth > 0 else 0.0

    @property
    def link_s(self) -> float:
        """Seconds of a round trip of late beside the node's service; 0.0 before the first."""
        trips, seconds = self._trips[:2].tolist()
        return seconds / trips if trips else 0.0

    @property
    def known(self) -> bool:
        """Whether there are answers enough to judge by."""
        return self._late < math.inf

    def expected(self, rows: int, bytes: int, speed: float) -> float:
        """Seconds; speed: rows per second."""
        return BASE_S + rows / speed + bytes * self._s_per_byte

    def allowance(self, expected_s: float) -> Allowance:
        if not self.known:
            return UNKNOWN
        late = min(max(self._late * expected_s, LEAST_LATE_S), MOST_LATE_S)
        return Allowance(min(max(self._hedge * expected_s, LEAST_HEDGE_S), late), late)


class ServiceTimes:
    """Of all nodes, by name: they outlive tables and connections."""

    def __init__(self) -> None:
        self._nodes: dict[NodeId, NodeTimes] = {}

    def of(self, node: NodeId) -> NodeTimes:
        times = self._nodes.get(node)
        if times is None:
            times = self._nodes[node] = NodeTimes()
        return times
