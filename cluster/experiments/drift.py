"""The drift trial: a domain switches mid-trace; how long until the load is balanced again, what does it move?

For `moemesh bench balance`: our control, which answers drift, against a reference that places anew every
3,000 steps whatever happens (vLLM's default interval for EPLB, docs/experiments.md).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from cluster.balance.choice import ChoicePolicy
from cluster.balance.fleet import Floats
from cluster.balance.problem import PlacementPolicy
from cluster.errors import ConfigError
from cluster.experiments.generators import Workload, step_rows
from cluster.experiments.sim.control import Control
from cluster.experiments.sim.inputs import Fleet, Work
from cluster.experiments.sim.model import Model
from cluster.experiments.sim.outcome import Outcome
from cluster.experiments.sim.profiles import profile
from cluster.experiments.sim.run import simulate

LEVEL = 0.95
SMOOTH = 10
"""Steps whose mean balancedness is held against the level: single steps scatter."""

WORKLOAD = Workload(
    layers=4, experts=64, top_k=8, steps=6400, tokens=256, zipf=0.6, domains=2, switches=(3200,)
)
"""64 experts, top-8, Zipf 0.6 (Gini 0.33 of the load): the skew of the issue's table."""

DEVICES, SPARES = 8, 16
MODEL = Model(hidden=2048, width=1024, bits=4.5)
"""OLMoE's experts in int4: 3.5 MB each."""

ADAPTIVE = Control(drift=True, half_life=16, settle=24, horizon=1000)
PERIODIC = Control(every=3000, half_life=500, horizon=0)
"""The window of 1,000 steps that vLLM takes has its centre of gravity 500 steps back; so has this one,
about.
"""


@dataclass(frozen=True)
class DriftTrial:
    """steps: from the switch until balancedness is back, see `recovery`. moved, reference_moved:
    bytes over the whole trace. before, after: balancedness ahead of the switch, and at the end of the
    trace."""

    steps: int
    moved: int
    reference_moved: int
    before: float
    after: float
    reference_after: float


def drift_trial(
    seed: int,
    placement: PlacementPolicy,
    choice: ChoicePolicy,
    reference: PlacementPolicy,
    reference_choice: ChoicePolicy,
    workload: Workload = WORKLOAD,
) -> DriftTrial:
    """One trial over links of 1 Gbit/s, copies coming from other devices. Raises ConfigError for a workload
    without exactly one switch."""
    if len(workload.switches) != 1:
        raise ConfigError(f"a drift trial has one switch, not {len(workload.switches)}")
    switch = workload.switches[0]
    work = Work(step_rows(workload, seed), np.full(workload.steps, workload.tokens))
    slots = workload.layers * (workload.experts + SPARES) // DEVICES
    memory = np.full(DEVICES, slots * MODEL.expert_bytes)
    fleet = Fleet((profile("n100"),) * DEVICES, memory, library=False)
    ours = simulate(work, MODEL, fleet, placement, choice, ADAPTIVE)
    periodic = replace(PERIODIC, every=min(PERIODIC.every, workload.steps * 3 // 4))  # and time to move
    theirs = simulate(work, MODEL, fleet, reference, reference_choice, periodic)
    return DriftTrial(
        recovery(ours.balance, switch),
        int(ours.moved.sum()),
        int(theirs.moved.sum()),
        float(ours.balance[:switch].mean()),
        _end(ours),
        _end(theirs),
    )


def recovery(balance: Floats, switch: int, level: float = LEVEL) -> int:
    """Steps after `switch` until the mean of SMOOTH steps has reached `level` and all later steps hold it on
    average; all that are left if that never happens. The SMOOTH steps are counted, unless it was never
    lost."""
    after = balance[switch:]
    means = np.convolve(after, np.ones(SMOOTH) / SMOOTH, "valid")
    rest = np.cumsum(after[::-1])[::-1] / np.arange(len(after), 0, -1)
    back = np.flatnonzero((means >= level) & (rest[: len(means)] >= level))
    if not len(back):
        return len(after)
    return int(back[0]) + SMOOTH if back[0] else 0


def _end(outcome: Outcome) -> float:
    return float(outcome.balance[-100:].mean())
