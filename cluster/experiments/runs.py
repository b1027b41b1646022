"""Carrying a spec out: every run in a process of its own choosing, its result a file, so that a sweep can go
on.

OUT/runs/ID.parquet      a row a step; config, seed, git revision, machine and figures in its metadata
OUT/results.parquet      a row a run
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from cluster.balance.policies import resolve
from cluster.errors import ConfigError, MoemeshError
from cluster.experiments import generators, traces
from cluster.experiments.live.mode import run_live
from cluster.experiments.routing import Trace
from cluster.experiments.sim.inputs import Fleet, Work
from cluster.experiments.sim.outcome import Outcome
from cluster.experiments.sim.run import simulate
from cluster.experiments.spec import FleetSpec, Run, Spec, TraceSpec

RUN_KEY = "moemesh.run"
RUN_VERSION = 2
"""Part of every run's id: raised when the simulator's results or made-up traces change, so that old runs are
done again."""


@dataclass(frozen=True)
class Swept:
    """done, skipped: runs carried out now, and found finished. failed: what went wrong, by run."""

    done: int
    skipped: int
    failed: dict[str, str]


def sweep(
    spec: Spec,
    out: Path,
    provenance: dict[str, Any],
    jobs: int = 1,
    progress: Callable[[int, int, str], None] | None = None,
) -> Swept:
    """Carry out all runs that OUT does not have yet, `jobs` at a time, and gather them in results.parquet.

    provenance: git revision and machine, written into every run. A run that fails is reported and tried again
    next time. Raises ConfigError if nothing succeeded.
    """
    folder = out / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    runs = spec.runs()
    todo = [run for run in runs if not (folder / f"{run_id(run)}.parquet").exists()]
    failed: dict[str, str] = {}
    ended = _one_by_one if min(jobs, len(todo)) <= 1 else _side_by_side
    for number, (run, error) in enumerate(ended(todo, folder, provenance, jobs), len(runs) - len(todo) + 1):
        if error is not None:
            failed[label(run)] = str(error)
        if progress:
            progress(number, len(runs), label(run))
    if len(failed) == len(runs):
        raise ConfigError(f"every run failed; the first: {next(iter(failed.values()))}")
    gather(spec, out)
    return Swept(len(todo) - len(failed), len(runs) - len(todo), failed)


Ended = Iterator[tuple[Run, MoemeshError | None]]


def _one_by_one(todo: list[Run], folder: Path, provenance: dict[str, Any], jobs: int) -> Ended:
    for run in todo:
        try:
            carry_out(run, folder, provenance)
        except MoemeshError as error:
            yield run, error
        else:
            yield run, None


def _side_by_side(todo: list[Run], folder: Path, provenance: dict[str, Any], jobs: int) -> Ended:
    """Processes are spawned: a fork would copy the locks of polars' and numba's threads as they happen to
    be.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(jobs, len(todo)), mp_context=context) as pool:
        futures = {pool.submit(carry_out, run, folder, provenance): run for run in todo}
        try:
            for future in as_completed(futures):
                error = future.exception()
                if error is not None and not isinstance(error, MoemeshError):
                    raise error
                yield futures[future], error
        finally:
            pool.shutdown(cancel_futures=True)  # Ctrl-C: what has not begun is left for the next time


def label(run: Run) -> str:
    return f"{run.policy.name} · {run.trace.name} · {run.fleet.name} · seed {run.seed}"


def run_id(run: Run) -> str:
    """Names the run by all that decides its result."""
    values = asdict(run)
    if not values.pop("live"):
        text = json.dumps([RUN_VERSION, values, _stamp(run.trace)], sort_keys=True)
    else:
        text = json.dumps([RUN_VERSION, values, _stamp(run.trace), "live"], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _stamp(trace: TraceSpec) -> list[int]:
    """Size and time of a trace's file: another file of the same name is another run."""
    if trace.file is None:
        return []
    path = Path(trace.file)
    if not path.exists():
        raise ConfigError(f"trace {trace.name!r}: {path} does not exist")
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def carry_out(run: Run, folder: Path, provenance: dict[str, Any]) -> None:
    """Carry out one run, in the simulator or live, and write its file; it gets its name when it is whole.
    Raises what the run raises."""
    trace = _trace(run.trace, run.seed)
    gated = resolve(run.policy.gate)(trace, np.random.default_rng(run.seed), **dict(run.policy.gate_options))
    work = work_of(trace, gated.ids, gated.kept)
    if run.warmup >= len(work.tokens):
        raise ConfigError(f"a warm-up of {run.warmup} steps leaves nothing of {len(work.tokens)}")
    fleet, placement = fleet_of(run.fleet, run, work), resolve(run.policy.placement)
    choice, control = resolve(run.policy.choice), run.policy.control
    if run.live:
        if not gated.kept.all():
            raise ConfigError("a gate that leaves rows out cannot be run live; nodes compute whole rows")
        routed = replace(trace, ids=gated.ids)
        outcome = run_live(routed, work, run.model, fleet, placement, choice, control)
    else:
        outcome = simulate(work, run.model, fleet, placement, choice, control)
    figures = summarise(run, work, outcome) | {
        "overflow": float(1 - gated.kept.mean()),
        "changed": _changed(trace.ids, gated.ids),
    }
    config = {"run": asdict(run), "figures": figures, **provenance}
    frame = pl.DataFrame(
        {
            "step": np.arange(len(work.tokens), dtype=np.uint32),
            "tokens": work.tokens,
            "step_s": outcome.step_s,
            "balancedness": outcome.balance,
            "moved_bytes": outcome.moved,
        }
    )
    path = folder / f"{run_id(run)}.parquet"
    part = path.with_suffix(".part")
    frame.write_parquet(part, metadata={RUN_KEY: json.dumps(config)})
    part.rename(path)


def work_of(trace: Trace, ids: np.ndarray, kept: np.ndarray) -> Work:
    """The rows of every step, layer and expert."""
    layers, experts = len(trace.header.layers), trace.header.experts
    offset = experts * np.arange(layers)[None, :, None]
    slices = trace.step_slices()
    rows = np.stack(
        [
            np.bincount((ids[part] + offset)[kept[part]], minlength=layers * experts).reshape(layers, experts)
            for part in slices
        ]
    )
    return Work(rows, np.array([part.stop - part.start for part in slices]))


def fleet_of(spec: FleetSpec, run: Run, work: Work) -> Fleet:
    """The simulator's fleet: memories in bytes. Raises ConfigError where they are too small for the model."""
    _, layers, experts = work.rows.shape
    whole = layers * experts * run.model.expert_bytes
    count = len(spec.devices)
    if spec.memory == "profile":
        memory = np.array([device.memory for device in spec.devices], np.int64)
    else:
        rows = max(float(work.rows[work.rows > 0].mean()), 1e-9)
        speed = np.array([device.row_rate(run.model, rows) for device in spec.devices])
        parts = np.full(count, 1 / count) if spec.memory == "equal" else speed / speed.sum()
        slots = _whole(parts * (1 + spec.spare) * layers * experts, layers * experts)
        memory = slots * run.model.expert_bytes
    resident = None
    if spec.resident < 1:
        resident = np.minimum(memory, (whole / count * spec.resident)).astype(np.int64)
    return Fleet(
        spec.devices, memory, spec.routers, spec.router, resident, spec.faults, spec.library, spec.hosts
    )


def _whole(slots: np.ndarray, most: int) -> np.ndarray:
    """Whole slots with the same sum, rounded up where most is lost; a device holds an expert once at most."""
    floor = np.floor(slots).astype(np.int64)
    left = round(float(slots.sum())) - int(floor.sum())
    floor[np.argsort(floor - slots, kind="stable")[:left]] += 1
    whole: np.ndarray = np.minimum(floor, most)
    return whole


def summarise(run: Run, work: Work, outcome: Outcome) -> dict[str, Any]:
    """The figures of a run after its warm-up; moved bytes are of the whole run. hit_rate is NaN without a
    cache.
    """
    times = outcome.step_s[run.warmup :]
    looked = outcome.hits + outcome.misses
    return {
        "balancedness": float(outcome.balance[run.warmup :].mean()),
        "tokens_per_s": float(work.tokens[run.warmup :].sum() / times.sum()),
        "p50_ms": float(np.percentile(times, 50) * 1e3),
        "p99_ms": float(np.percentile(times, 99) * 1e3),
        "moved_bytes": int(outcome.moved.sum()),
        "hit_rate": outcome.hits / looked if looked else float("nan"),
        "alarms": len(outcome.alarms),
        "retries": outcome.retries,
    }


def _changed(before: np.ndarray, after: np.ndarray) -> float:
    """Part of the choices that a gate replaced."""
    if before is after:
        return 0.0
    return float(1 - (before[:, :, :, None] == after[:, :, None, :]).any(axis=3).mean())


@lru_cache(maxsize=2)
def _trace(spec: TraceSpec, seed: int) -> Trace:
    """Runs of one trace and seed follow each other."""
    if spec.generate is not None:
        return generators.whole(spec.generate, seed)
    assert spec.file is not None
    return traces.read(Path(spec.file))


def gather(spec: Spec, out: Path) -> pl.DataFrame:
    """results.parquet: a row for each run of the spec that is finished."""
    rows = []
    for run in spec.runs():
        path = out / "runs" / f"{run_id(run)}.parquet"
        if path.exists():
            config = json.loads(pl.read_parquet_metadata(path)[RUN_KEY])
            rows.append(
                {
                    "id": path.stem,
                    "policy": run.policy.name,
                    "trace": run.trace.name,
                    "fleet": run.fleet.name,
                    "seed": run.seed,
                    **config["figures"],
                    "git": config["git"],
                    "machine": json.dumps(config["machine"]),
                    "config": json.dumps(config["run"]),
                }
            )
    frame = pl.DataFrame(rows)
    frame.write_parquet(out / "results.parquet")
    return frame
