"""What balancing gains on a live cluster, for `moemesh bench balance`: the bundled model on paced nodes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from cluster.cli.local import local_engine, run
from cluster.cli.report import Result, Target, result
from cluster.experiments.live.speedup import SpeedUp, Tokens, speed_up
from cluster.experiments.live.streams import sampled_requests
from cluster.library.bundled import open_model
from cluster.library.reader import Library
from cluster.router.recorder import GateRecorder
from cluster.types import Emitted, EngineRequest, RequestId

RATES = (4_000.0, 4_000.0, 2_000.0)
"""Rows per second of the nodes, one at half speed: a small part of what a core computes, so that the nodes do
not merely share this machine's cores."""

SEQUENCES = 32

PERCENT = 99.0


def live_results(trials: int, tokens: int) -> Iterator[Result]:
    """p99 of a decode step before and after the controller has moved experts, over so many clusters; the
    gain, of what the dispatch LP says that these steps gain."""
    library = open_model()
    requests = sampled_requests(library, SEQUENCES, tokens)
    expected, rows = reference(library, requests)
    found = [speed_up(library, RATES, requests, expected, rows) for _ in range(trials)]
    name = "balance.live"
    gains = [each.gain(PERCENT) / each.lp_gain(PERCENT) for each in found]
    yield result(f"{name}.p99_gain_of_predicted", gains, "ratio", Target(0.85, reference="dispatch LP"))
    identical = [float(each.identical) for each in found]
    yield result(f"{name}.tokens_identical", identical, "ratio", Target(1.0, reference="one process"))
    yield from _beside(name, found)


def _beside(name: str, found: Sequence[SpeedUp]) -> Iterator[Result]:
    for when in ("before", "after"):
        steps = [getattr(each, when) for each in found]
        for percent in (50, 99):
            values = [1e3 * float(np.percentile(each, percent)) for each in steps]
            yield result(f"{name}.p{percent}_{when}_ms", values, "ms")
    yield result(f"{name}.p99_gain_ms", [1e3 * each.gain(PERCENT) for each in found], "ms")
    yield result(f"{name}.p99_gain_predicted_ms", [1e3 * each.lp_gain(PERCENT) for each in found], "ms")
    yield result(f"{name}.mean_gain_promised_ms", [1e3 * each.promised_s for each in found], "ms")
    means = [1e3 * float(each.before.mean() - each.after.mean()) for each in found]
    yield result(f"{name}.mean_gain_ms", means, "ms")
    for number, when in enumerate(("before", "after")):
        yield result(f"{name}.balancedness_{when}", [each.balancedness[number] for each in found], "ratio")
    yield result(f"{name}.copies_after", [each.copies for each in found], "copies")
    yield result(f"{name}.moved_bytes", [each.moved for each in found], "B")


def reference(library: Library, requests: Sequence[EngineRequest]) -> tuple[Tokens, npt.NDArray[np.int64]]:
    """The requests' tokens from one process, and the rows [steps, layers, experts] of the steps that gave
    every request one token."""
    spec = library.spec
    recorder = GateRecorder(len(spec.sparse_layers), time.monotonic)
    tokens: dict[RequestId, list[int]] = {request.request_id: [] for request in requests}
    with local_engine(library, probe=recorder) as engine:
        for event in run(engine, *requests):
            if isinstance(event, Emitted):
                tokens[event.request_id].append(event.token_id)
    steps = [
        np.stack([np.bincount(layer.ravel(), minlength=spec.experts) for layer in record.ids])
        for record in recorder.drain()
        if len(record.positions) == len(requests)
    ]
    return tuple(map(tuple, tokens.values())), np.stack(steps)
