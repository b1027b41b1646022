"""Figures of the dispatch: round trips and bytes, against their targets and against plain sockets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cluster.cli.bench_dispatch import BUNDLED, measure_exchange, measure_raw
from cluster.cli.bench_seal import SIZES, measure_seal
from cluster.cli.report import Result, Target, result

ROWS = (1, 32)
"""Rows of a batch: one stream decoding, and thirty-two."""

BYTES_ROWS = 8
BYTES_ROUNDS = 64

ROUND_TRIP = Target(must=150, at_most=True, reference="plain sockets: cluster.dispatch.raw_p50")
OVER_SOCKETS = Target(must=150 / 68, at_most=True, reference="150 µs where plain sockets take 68")
"""The same bound for a machine that is slower, or busy with other things: in one run both suffer alike."""

HEADER = Target(must=64 + 12 * BYTES_ROWS, at_most=True, reference="64 bytes + 12 a row")
PAYLOAD_OUT = Target(
    must=BYTES_ROWS * (BUNDLED.hidden + 4), at_most=True, reference="rows * (hidden + 4) bytes"
)
PAYLOAD_BACK = Target(must=1.05, at_most=True, reference="top-k rows of the result type")


@dataclass(frozen=True)
class WirePreset:
    """repeats: runs with processes of their own; rounds: round trips in a run."""

    repeats: int
    rounds: int


WIRE_PRESETS = {"minimal": WirePreset(3, 1000), "full": WirePreset(10, 5000)}


def measure_wire(preset: WirePreset, progress: Callable[[str], None]) -> list[Result]:
    """Three echo nodes on loopback. Raises StartFailed."""
    results = []
    for rows in ROWS:
        results += _round_trips(rows, preset, progress)
    progress("seals")
    results += _seals()
    progress("bytes of a message")
    return results + _bytes()


def _round_trips(rows: int, preset: WirePreset, progress: Callable[[str], None]) -> list[Result]:
    """Medians over runs; the exchange, plain and sealed, and plain sockets take turns, so that a slow minute
    hits all."""
    p50, p99, sealed, raw = [], [], [], []
    for run in range(preset.repeats):
        progress(f"dispatch of {rows} rows, run {run + 1} of {preset.repeats}")
        measured = measure_exchange(rows, rounds=preset.rounds)
        p50.append(measured.percentile(50))
        p99.append(measured.percentile(99))
        progress(f"sealed dispatch of {rows} rows, run {run + 1} of {preset.repeats}")
        sealed.append(measure_exchange(rows, rounds=preset.rounds, sealed=True).percentile(50))
        progress(f"plain sockets with {rows} rows, run {run + 1} of {preset.repeats}")
        raw.append(measure_raw(rows, rounds=preset.rounds).percentile(50))
    at = "" if rows == 1 else f".rows{rows}"
    bound, over = (ROUND_TRIP, OVER_SOCKETS) if rows == 1 else (Target(), Target())
    ratios = [ours / plain for ours, plain in zip(p50, raw, strict=True)]
    return [
        result(f"cluster.dispatch.roundtrip_p50{at}", p50, "µs", bound),
        result(f"cluster.dispatch.roundtrip_p99{at}", p99, "µs"),
        result(f"cluster.dispatch.sealed_p50{at}", sealed, "µs"),
        result(f"cluster.dispatch.raw_p50{at}", raw, "µs"),
        result(f"cluster.dispatch.ratio_to_raw{at}", ratios, "ratio", over),
    ]


def _seals() -> list[Result]:
    """What a frame of each size costs its sender and its receiver."""
    results = []
    for name, size in SIZES.items():
        seal, open_ = measure_seal(size)
        results += [
            result(f"cluster.dispatch.seal.{name}", seal, "µs"),
            result(f"cluster.dispatch.open.{name}", open_, "µs"),
        ]
    return results


def _bytes() -> list[Result]:
    """One node, so that every row is sent exactly once and counted bytes can be told from rows."""
    measured = measure_exchange(BYTES_ROWS, nodes=1, rounds=BYTES_ROUNDS)
    back = measured.payload_bytes_in / (measured.pairs * BUNDLED.result_bytes)
    at = f".rows{BYTES_ROWS}"
    return [
        result(f"cluster.dispatch.header_bytes{at}", [measured.header_bytes_out], "bytes", HEADER),
        result(f"cluster.dispatch.payload_out_bytes{at}", [measured.payload_bytes_out], "bytes", PAYLOAD_OUT),
        result("cluster.dispatch.payload_back_ratio", [back], "ratio", PAYLOAD_BACK),
    ]
