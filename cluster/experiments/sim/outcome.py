"""What a run of the simulator, or a live one, gave."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cluster.balance.fleet import Floats


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a run gave.

    step_s: [steps] seconds a step took, mean over routers. balance: [steps] balancedness of its rows. moved:
    [steps] bytes that arrived while it ran. seconds: of the whole run. rows: computed in all. hits, misses:
    of the expert caches. alarms: steps at which drift was found. retries: dispatches sent again.
    """

    step_s: Floats
    balance: Floats
    moved: npt.NDArray[np.int64]
    seconds: float
    rows: int
    hits: int
    misses: int
    alarms: tuple[int, ...]
    retries: int


def balancedness(rows: Floats, speed: Floats) -> float:
    """Mean over layers with rows of the fluid bound Σ rows / Σ speed over the makespan max(rows / speed): 1
    if all devices end together. For equal speeds it is mean over maximum, as EPLB counts it.

    rows: [layers, devices]; speed: [devices], 0 for a device that is not there.
    """
    there = speed > 0
    busy = rows[rows.sum(axis=1) > 0][:, there]
    if not len(busy):
        return 1.0
    fluid = busy.sum(axis=1) / speed[there].sum()
    return float(np.mean(fluid / (busy / speed[there]).max(axis=1)))
