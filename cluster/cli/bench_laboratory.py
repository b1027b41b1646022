"""What the simulator adds to `moemesh bench balance`: recovery from drift, and its own speed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

from cluster.balance import baselines, choice, heuristic
from cluster.cli.report import Result, Target, result
from cluster.experiments.drift import WORKLOAD, drift_trial
from cluster.experiments.speed import steps_per_second

EPLB = "EPLB every 3,000 steps"
STEPS = 60


def drift_results(seeds: int, steps: int) -> Iterator[Result]:
    """A domain switches in the middle of so many steps: steps until balancedness is back above 0.95, and
    bytes moved, over seeds."""
    workload = replace(WORKLOAD, steps=steps, switches=(steps // 2,))
    trials = [
        drift_trial(seed, heuristic.place, choice.flow, baselines.eplb, choice.even_split, workload)
        for seed in range(seeds)
    ]
    name = "balance.drift"
    yield result(
        f"{name}.steps", [t.steps for t in trials], "steps", Target(100, at_most=True, reference=EPLB)
    )
    moved = [trial.moved / trial.reference_moved for trial in trials]
    yield result(f"{name}.bytes_over_eplb", moved, "ratio", Target(1 / 3, at_most=True, reference=EPLB))
    yield result(f"{name}.balancedness_before", [trial.before for trial in trials], "ratio")
    yield result(f"{name}.balancedness_after", [trial.after for trial in trials], "ratio")
    yield result(f"{name}.eplb_balancedness_after", [trial.reference_after for trial in trials], "ratio")


def simulator_results(runs: int) -> Iterator[Result]:
    """Steps per second of one core with 256 nodes × 60 layers × 256 experts."""
    for policy, must in ((choice.least_loaded, 100.0), (choice.flow, 10.0)):
        samples = [steps_per_second(policy, STEPS, time.process_time) for _ in range(runs)]
        yield result(f"balance.simulator.{policy.__name__}", samples, "steps/s", Target(must))
