"""What is measured: a kernel at a shape, with the bytes it reads and the operations it does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cluster.cli.kernelbench.calm import Probe, Sample, best_of, calm_ones, enough
from cluster.cli.kernelbench.limits import Machine, seconds
from cluster.cli.kernelbench.shapes import Blobs, Shape
from cluster.cli.report import NO_TARGET, Result, Target, result
from cluster.compute.ffn import FfnScratch, Groups, received, run_ffn
from cluster.compute.scratch import Scratch
from cluster.compute.threads import Workers
from cluster.compute.weights import Matrix
from kernels import layout, matmul

BANDWIDTH, ROOF, RATE, TIME = "bw_fraction", "roof_fraction", "rate_fraction", "microseconds"


@dataclass(frozen=True)
class Case:
    """id: without "kernels."; series, label: of its point in the plot; bytes and operations: of one call of
    `run`; calls: of the kernel in one, for a time.

    measure: what it is held against: the read bandwidth, the register rate, the lower of the register rate
    and what the bandwidth lets through at this intensity, or nothing (a time).
    Operations are two for each byte multiply-add that is executed: the two planes of a down input count
    twice (NUMERICS section 2).
    """

    id: str
    series: str
    label: str
    measure: str
    run: Callable[[], None]
    bytes: int = 0
    operations: int = 0
    target: Target = NO_TARGET
    calls: int = 1


@dataclass(frozen=True)
class Point:
    """A measured kernel in the roofline plot: operations a byte, operations a second.

    series: what it belongs to, "int8 olmoe"; label: which of the series, "64 rows".
    """

    series: str
    label: str
    intensity: float
    rate: float
    threads: int


@dataclass(frozen=True)
class Rated:
    """Samples of a case that is held against a rate, to be judged when the best of the whole run is known.

    The case can no longer be run: that would keep its buffer of gigabytes until then.
    """

    case: Case
    samples: list[Sample]
    threads: int


@dataclass(frozen=True)
class Measured:
    result: Result
    point: Point | None
    rated: Rated | None = None


def measure(case: Case, machine: Machine, runs: int) -> Measured:
    """The limits are measured next to every run, so that a machine that slows down slows both."""
    case.run()
    if case.measure in (RATE, ROOF):
        return _measure_rate(case, machine, runs)
    times: list[float] = []
    samples = [_sample(case, machine, times) for _ in range(runs)]
    unit = "µs" if case.measure == TIME else "ratio"
    found = result(f"kernels.{case.id}", samples, unit, case.target)
    return Measured(found, _point(case, machine, times) if case.operations else None)


def _sample(case: Case, machine: Machine, times: list[float]) -> float:
    if case.measure == TIME:
        times.append(seconds(case.run))
        return times[-1] / case.calls * 1e6
    limit = machine.reader.rate()
    times.append(seconds(case.run))
    return case.bytes / times[-1] / limit


def _measure_rate(case: Case, machine: Machine, runs: int) -> Measured:
    samples: list[Sample] = []
    while not samples or not enough(samples, best_of(machine.seen), runs):
        before = machine.probe(case.measure == ROOF)
        took = seconds(case.run)
        samples.append(Sample(took, before, machine.probe(case.measure == ROOF)))
    best = best_of(machine.seen)
    counted = calm_ones(samples, best) or samples
    point = _point(case, machine, [sample.seconds for sample in counted])
    rated = Rated(replace(case, run=_over), samples, machine.workers.threads)
    return Measured(rated_result(case, samples, best), point, rated)


def _over() -> None:
    raise RuntimeError("a judged case is not run again")


def rated_result(case: Case, samples: Sequence[Sample], best: Probe) -> Result:
    """The median of the calm samples, or of all where none was calm, which is flagged."""
    calm = calm_ones(samples, best)
    fractions = [sample.fraction(case.operations, case.bytes) for sample in calm or samples]
    found = result(f"kernels.{case.id}", fractions, "ratio", case.target)
    return replace(found, calm_runs=len(calm), disturbed_runs=len(samples) - len(calm), disturbed=not calm)


def _point(case: Case, machine: Machine, times: Sequence[float]) -> Point:
    rate = case.operations / sorted(times)[len(times) // 2]
    return Point(case.series, case.label, case.operations / case.bytes, rate, machine.workers.threads)


def experts_case(
    id: str,
    measure: str,
    workers: Workers,
    blobs: Blobs,
    shape: Shape,
    rows: int,
    experts: int,
    target: Target = NO_TARGET,
) -> Case:
    """The feed-forward network of `experts` experts of the buffer in random order, top_k a call."""
    rng, scratch = np.random.default_rng(0), Scratch()
    order = rng.permutation(blobs.count)[: experts // shape.top_k * shape.top_k]
    calls = list(_calls(order, blobs.size, shape.top_k, rows))
    inputs = rng.integers(-127, 128, (rows, shape.hidden)).astype(np.int8)
    acts = received(workers, scratch, inputs, np.full(rows, 1e-2, np.float32))
    out = np.zeros((rows * shape.top_k, shape.hidden), np.float32)
    inner = FfnScratch(scratch, shape.width)

    def run() -> None:
        for groups in calls:
            run_ffn(workers, inner, blobs.data, blobs.down_offset, groups, acts, out)

    executed = 2 * rows * len(order) * (2 + 2) * shape.hidden * shape.width
    total, series = len(order) * blobs.size, f"{blobs.kind} experts, {shape.name}"
    return Case(id, series, rows_label(rows), measure, run, total, executed, target)


def rows_label(rows: int) -> str:
    return "1 row" if rows == 1 else f"{rows} rows"


def _calls(order: np.ndarray, size: int, top_k: int, rows: int) -> Iterator[Groups]:
    """Every expert of a call is given the same `rows` rows."""
    start = np.arange(0, (top_k + 1) * rows, rows, dtype=np.int64)
    row_of, places = np.tile(np.arange(rows), top_k), np.arange(rows * top_k)
    for first in range(0, len(order), top_k):
        yield Groups(order[first : first + top_k] * size, start, row_of, places)


def matmul_case(
    id: str, series: str, measure: str, workers: Workers, matrices: Sequence[Matrix], rows: int
) -> Case:
    """A trunk projection, one plane, over matrices that together do not fit the caches."""
    rng, scratch = np.random.default_rng(0), Scratch()
    width, blocks = matrices[0].width, matrices[0].blocks
    inputs = rng.integers(-127, 128, (rows, width)).astype(np.int8)
    acts = received(workers, scratch, inputs, np.full(rows, 1e-2, np.float32))
    out = np.zeros((rows, blocks * layout.ROWS), np.float32)

    def run() -> None:
        for m in matrices:
            x, sums = acts.rows, acts.sums
            workers.run(matmul.matmul_int, m.blocks, m.data, m.base, x, x, sums, sums, acts.scale, 1, out)

    total = sum(len(m.data) for m in matrices)
    executed = 2 * rows * len(matrices) * blocks * layout.ROWS * width
    return Case(id, series, rows_label(rows), measure, run, total, executed)
