"""The bytes of a dispatch, counted on real sockets between real processes, keep their bounds."""

from __future__ import annotations

from cluster.cli.bench_seal import SIZES
from cluster.cli.bench_wire import WirePreset, measure_wire


def test_bytes_keep_their_bounds_and_every_figure_has_its_id() -> None:
    said: list[str] = []
    results = {r.id: r for r in measure_wire(WirePreset(repeats=1, rounds=20), said.append)}
    assert list(results) == [
        "cluster.dispatch.roundtrip_p50",
        "cluster.dispatch.roundtrip_p99",
        "cluster.dispatch.sealed_p50",
        "cluster.dispatch.raw_p50",
        "cluster.dispatch.ratio_to_raw",
        "cluster.dispatch.roundtrip_p50.rows32",
        "cluster.dispatch.roundtrip_p99.rows32",
        "cluster.dispatch.sealed_p50.rows32",
        "cluster.dispatch.raw_p50.rows32",
        "cluster.dispatch.ratio_to_raw.rows32",
        *(f"cluster.dispatch.{what}.{size}" for size in SIZES for what in ("seal", "open")),
        "cluster.dispatch.header_bytes.rows8",
        "cluster.dispatch.payload_out_bytes.rows8",
        "cluster.dispatch.payload_back_ratio",
    ]
    assert len(said) == 8, "progress is said before every measurement"
    assert all(results[name].met for name in list(results)[-3:])
