"""All of `moemesh bench kernels` in order: limits, experts, trunk, attention, the small ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

import numpy as np

from cluster.cli.kernelbench.calm import Probe, best_of
from cluster.cli.kernelbench.cases import (
    BANDWIDTH,
    RATE,
    ROOF,
    Case,
    Measured,
    Point,
    Rated,
    experts_case,
    matmul_case,
    measure,
    rated_result,
)
from cluster.cli.kernelbench.limits import THREADS, Machine, Reader, Registers, register_results
from cluster.cli.kernelbench.shapes import (
    KINDS,
    OLMOE,
    OLMOE_VOCABULARY,
    SHAPES,
    Blobs,
    Shape,
    random_blobs,
    random_matrix,
)
from cluster.cli.kernelbench.small import attention_case, small_cases
from cluster.cli.report import NO_TARGET, Result, Target
from cluster.compute.threads import Workers
from cluster.config import MiB
from cluster.errors import MoemeshError
from kernels import jit

Say = Callable[[str], None]

PREFILL_BYTES = 192 * MiB
"""Experts that a prefill measurement goes through: more than a core's share of any last-level cache."""

JUDGED_BYTES = 2048 * MiB
"""A smaller buffer stays in part in the last-level cache: its figures are not held against a target."""

READ = "best measured read rate of the same buffer"
REGISTERS = "measured rate of dot products between registers"

DECODE_TARGETS = {
    "int8": Target(0.85, 0.95, reference=READ),
    "int4": Target(0.80, 0.92, reference=READ),
}
PREFILL_TARGETS = {
    ("amx", ROOF): Target(0.50, 0.75, reference=f"lower of {REGISTERS} and intensity times read rate"),
    ("amx", RATE): Target(0.45, 0.65, reference=REGISTERS),
    ("avx512vnni", RATE): Target(0.60, 0.80, reference=REGISTERS),
    ("avx512vnni", ROOF): Target(0.60, 0.80, reference=REGISTERS),
}


@dataclass(frozen=True)
class KernelPreset:
    """buffer: bytes of experts; decode_rows, prefill_rows: rows an expert; contexts: tokens of attention."""

    runs: int
    buffer: int
    shapes: tuple[Shape, ...]
    decode_rows: tuple[int, ...]
    prefill_rows: tuple[int, ...]
    contexts: tuple[int, ...]


PRESETS = {
    "minimal": KernelPreset(3, 256 * MiB, (OLMOE,), (1,), (64,), (1024,)),
    "full": KernelPreset(5, JUDGED_BYTES, SHAPES, (1, 2, 4, 8), (64, 256), (512, 2048, 4096)),
}


@dataclass
class Kernels:
    """What was measured. rates, bandwidths: by number of threads, for the plot.

    rated: samples that `judge` judges again; seen: every probe, by number of threads.
    """

    results: list[Result] = field(default_factory=list)
    rated: dict[str, Rated] = field(default_factory=dict)
    seen: dict[int, list[Probe]] = field(default_factory=dict)
    points: list[Point] = field(default_factory=list)
    rates: dict[int, float] = field(default_factory=dict)
    bandwidths: dict[int, float] = field(default_factory=dict)

    def add(self, measured: Measured) -> None:
        self.results.append(measured.result)
        if measured.rated is not None:
            self.rated[measured.result.id] = measured.rated
        if measured.point is not None:
            self.points.append(measured.point)

    def judge(self) -> None:
        """Once the run is over: a moment that was its best so far may not have been a good one."""
        for place, found in enumerate(self.results):
            if (rated := self.rated.get(found.id)) is not None:
                best = best_of(self.seen[rated.threads])
                self.results[place] = rated_result(rated.case, rated.samples, best)

    @contextmanager
    def machine(self, threads: int, blobs: Blobs, runs: int) -> Iterator[Machine]:
        workers = Workers(threads)
        try:
            seen = self.seen.setdefault(threads, [])
            yield Machine(workers, Reader(workers, blobs.data, runs), Registers(workers), seen)
        finally:
            workers.close()


def measure_kernels(preset: KernelPreset, say: Say) -> Kernels:
    """Every kernel must be compiled already."""
    found = Kernels()
    found.results += register_results(preset.runs, say)
    for shape in preset.shapes:
        for kind in KINDS:
            say(f"filling {preset.buffer / MiB:.0f} MiB with {kind} experts of {shape.name}")
            blobs = random_blobs(np.random.default_rng(0), kind, shape, preset.buffer)
            for threads in THREADS:
                with found.machine(threads, blobs, preset.runs) as here:
                    if shape is OLMOE and kind == KINDS[0]:
                        _keep_limits(found, here)
                    for case in expert_cases(preset, here, blobs, shape, kind):
                        say(case.id)
                        found.add(measure(case, here, preset.runs))
            del blobs  # before the next buffer is made
    _trunk(found, preset, say)
    found.judge()
    if jit.ISA == "amx" and preset.buffer >= JUDGED_BYTES:
        found.results += _without_tiles(say)
    return found


def _keep_limits(found: Kernels, here: Machine) -> None:
    threads = here.workers.threads
    found.results += here.reader.results()
    found.bandwidths[threads] = here.reader.rate()
    found.rates[threads] = here.registers.rate()


def expert_cases(
    preset: KernelPreset, here: Machine, blobs: Blobs, shape: Shape, kind: str
) -> Iterator[Case]:
    """Decode over the whole buffer, prefill over a part of it. Ids of OLMoE carry no shape."""
    threads = here.workers.threads
    tail = f"threads{threads}" + ("" if shape is OLMOE else f".{shape.name}")
    judged = preset.buffer >= JUDGED_BYTES
    for rows in preset.decode_rows:
        target = DECODE_TARGETS[kind] if judged and rows == 1 else NO_TARGET
        id = f"{kind}_decode.{BANDWIDTH}.{tail}" + ("" if rows == 1 else f".rows{rows}")
        yield experts_case(id, BANDWIDTH, here.workers, blobs, shape, rows, blobs.count, target)
    experts = min(blobs.count, max(shape.top_k, PREFILL_BYTES // blobs.size))
    for rows in preset.prefill_rows:
        against = ROOF if rows < 256 else RATE
        target = PREFILL_TARGETS.get((jit.ISA, against), NO_TARGET) if judged else NO_TARGET
        id = f"{kind}_prefill.{jit.ISA}.{against}.rows{rows}.{tail}"
        yield experts_case(id, against, here.workers, blobs, shape, rows, experts, target)


def _trunk(found: Kernels, preset: KernelPreset, say: Say) -> None:
    rng, part = np.random.default_rng(0), preset.buffer // 4
    for kind in KINDS:
        head = random_matrix(rng, kind, OLMOE_VOCABULARY, OLMOE.hidden)
        square = random_matrix(rng, kind, OLMOE.hidden, OLMOE.hidden)
        copies = [square] + [
            random_matrix(rng, kind, OLMOE.hidden, OLMOE.hidden) for _ in range(part // len(square.data) - 1)
        ]
        for threads in THREADS:
            with found.machine(threads, Blobs(kind, head.data, len(head.data), 0), preset.runs) as here:
                for name, matrices in (("projection", copies), ("head", [head] * 2)):
                    for rows, against in ((1, BANDWIDTH), (64, RATE)):
                        phase = "decode" if rows == 1 else "prefill"
                        id = f"{kind}_{name}_{phase}.{against}.threads{threads}"
                        say(id)
                        case = matmul_case(id, f"{kind} {name}", against, here.workers, matrices, rows)
                        found.add(measure(case, here, preset.runs))
                if kind == KINDS[0]:
                    for context in preset.contexts:
                        case = attention_case(here.workers, context, part)
                        say(case.id)
                        found.add(measure(case, here, preset.runs))
                if kind == KINDS[0] and threads == 1:
                    for case in small_cases():
                        say(case.id)
                        found.add(measure(case, here, preset.runs))


def measure_prefill(preset: KernelPreset, say: Say) -> list[Result]:
    """Only the prefill of OLMoE's experts, with this process's instruction set."""
    found = Kernels()
    for kind in KINDS:
        blobs = random_blobs(np.random.default_rng(0), kind, OLMOE, PREFILL_BYTES)
        for threads in THREADS:
            with found.machine(threads, blobs, preset.runs) as here:
                for case in expert_cases(preset, here, blobs, OLMOE, kind):
                    if "_prefill" in case.id:
                        say(case.id)
                        found.add(measure(case, here, preset.runs))
    found.judge()
    return found.results


def _without_tiles(say: Say) -> list[Result]:
    """measure_prefill of AVX-512 VNNI in a process of its own, on a machine whose best set is AMX."""
    say("the same prefill without AMX")
    environment = os.environ | {jit.ISA_VARIABLE: "avx512vnni"}
    command = [sys.executable, "-m", "cluster.cli.kernelbench.run"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    if run.returncode:
        raise MoemeshError(f"measuring avx512vnni ended with {run.returncode}: {run.stderr[-500:]}")
    return [Result(**r | {"spread": tuple(r["spread"])}) for r in json.loads(run.stdout)]


def main() -> None:
    from kernels import warm

    warm.compile_all(apart=True)
    found = measure_prefill(PRESETS["full"], lambda text: None)
    json.dump([asdict(r) for r in found], sys.stdout)


if __name__ == "__main__":
    main()
