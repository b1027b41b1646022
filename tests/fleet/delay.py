"""Throughput with 20 ms added on every link, in either direction, beside the bound that no cluster can beat.

    PYTHONPATH=.:tests python tests/fleet/delay.py [STREAMS ...]

A step crosses the network there and back in each sparse layer, one after the other. So its streams get a
token each in no less than layers x RTT + compute: RTT is what was added, compute a step without it.
Each line is the median of several pairs of runs, by the part of the bound that they reach. Exits 1 where that
is less than 0.9; says why and exits 0 where there can be no hosts.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from cluster.experiments.live.streams import Stream
from cluster.library.bundled import open_model
from fleet.bed import Wanted, bed
from fleet.links import Link
from fleet.needs import missing
from fleet.served import Served, served

ADDED_S = 0.020
STREAMS = (1, 16, 128)
TOKENS = 160
STEPS = 60
PAIRS = 3
MUST = 0.9
NODES = ("b", "c")
ENGINE = {"max_running": 128, "kv_bytes": 512 << 20}


@dataclass(frozen=True)
class Measured:
    """Tokens per second of `streams` streams: near without, far with the added delay."""

    streams: int
    round_trips: int
    near: float
    far: float

    @property
    def bound(self) -> float:
        compute_s = self.streams / self.near
        return self.streams / (self.round_trips * 2 * ADDED_S + compute_s)

    @property
    def part(self) -> float:
        return self.far / self.bound

    def __str__(self) -> str:
        return (
            f"{self.streams:>7} {self.near:>12.1f} {self.far:>12.1f} {self.bound:>12.1f} {self.part:>10.3f}  "
            f"{'ok' if self.part >= MUST else f'below {MUST:g}'}"
        )


def rate(found: Sequence[Stream], streams: int) -> float:
    """Tokens per second while all streams ran: from the second token of the last to begin to the last token
    of the first to end, of every request's first stream."""
    times = [next(one.times for one in found if one.request == request) for request in range(streams)]
    begin, end = max(each[1] for each in times), min(each[-1] for each in times)
    came = sum(begin < each <= end for each in chain.from_iterable(times))
    return came / (end - begin)


def measure(cluster: Served, streams: int) -> Measured:
    layers = len(open_model().spec.sparse_layers)
    rates = []
    for link in (Link(), Link(delay_s=ADDED_S)):
        cluster.bed.link_all(link)
        with cluster.streams(streams, TOKENS) as found:
            cluster.wait_running(streams)
            cluster.wait_steps(STEPS)
        rates.append(rate(found, streams))
    cluster.bed.link_all(Link())
    return Measured(streams, layers, *rates)


def main(streams: Sequence[int]) -> int:
    if reason := missing():
        print(f"test-fleet skipped: {reason}")
        return 0
    with (
        bed([Wanted(name) for name in ("a", *NODES)]) as made,
        served(made, NODES, router="a", engine=ENGINE) as cluster,
    ):
        print(f"{1e3 * ADDED_S:g} ms added on every link, in each direction; tokens/s")
        print(f"{'streams':>7} {'without':>12} {'with':>12} {'bound':>12} {'of bound':>10}", flush=True)
        worst = 1.0
        for count in streams:
            pairs = sorted((measure(cluster, count) for _ in range(PAIRS)), key=lambda one: one.part)
            measured = pairs[len(pairs) // 2]
            worst = min(worst, measured.part)
            print(f"{measured} ({pairs[0].part:.3f} to {pairs[-1].part:.3f})", flush=True)
    return 0 if worst >= MUST else 1


if __name__ == "__main__":
    sys.exit(main(tuple(map(int, sys.argv[1:])) or STREAMS))
