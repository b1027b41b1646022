"""The controller of a simulated cluster: windows, drift, decisions. The same pure functions as the live
one.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cluster.balance.fleet import Devices, Floats, Integers
from cluster.balance.load import LoadStats, StepLoad, drift, fold
from cluster.balance.migration import Budget, Migration
from cluster.balance.problem import Placement, PlacementPolicy, Problem
from cluster.balance.rebalance import decide
from cluster.errors import ConfigError
from cluster.types import NodeId

CHECK_EVERY = 4
"""Steps between two looks for drift."""


@dataclass(frozen=True)
class Control:
    """When experts are placed anew.

    every: steps between placements whatever the load does; 0: never for that reason.
    drift: place anew when the load has changed. settle: steps of new load that are awaited before placing.
    half_life: steps of the recent window. horizon: steps within which a placement must pay; 0: it need not.
    history: steps of the trace from which the first placement is made; 0: it knows nothing.
    share: part of each link that moves may use.
    """

    every: int = 0
    drift: bool = False
    settle: int = 24
    half_life: float = 16.0
    horizon: float = 1000.0
    history: int = 50
    share: float = 0.25

    def __post_init__(self) -> None:
        counts = (self.every, self.settle, self.horizon, self.history)
        if min(counts) < 0 or not self.half_life > 0:
            raise ConfigError(
                "a control's every, settle, horizon and history are 0 or more, half_life above 0"
            )


class Controller:
    """Sees every finished step; says when to move where.

    After an alarm the window begins again, so that the new placement is made from new load alone, and the
    drift is looked for from there.
    """

    def __init__(
        self,
        policy: PlacementPolicy,
        control: Control,
        expert_bytes: Integers,
        devices: Devices,
        library: float,
        first: Floats,
    ) -> None:
        """expert_bytes, first: [layers, experts]; first: the load that the first placement is made for."""
        self._policy, self._control, self._bytes, self._devices = policy, control, expert_bytes, devices
        self._budget = Budget(control.share, None, library)
        layers, experts = first.shape
        self._empty = LoadStats.empty(layers, experts, control.half_life)
        self._recent = self._empty
        self._reference: LoadStats | None = None
        self._steps = 0
        self._alarm: int | None = None
        self.alarms: list[int] = []
        self.placement = self._place(Problem(first, expert_bytes, devices))

    def _place(self, problem: Problem) -> Placement:
        """The policy's answer, checked: an experiment may name anything."""
        placement = self._policy(problem)
        problem.check(placement)
        return placement

    def observe(self, rows: npt.NDArray[np.int64], tokens: int) -> bool:
        """One more step, rows [layers, experts]; whether it is time for a new placement."""
        self._steps += 1
        self._recent = fold(self._recent, StepLoad(rows, tokens))
        control = self._control
        if control.every and self._steps % control.every == 0:
            return True
        if not control.drift:
            return False
        if self._alarm is not None:
            return self._steps - self._alarm >= control.settle
        self._look()
        return False

    def _look(self) -> None:
        if self._reference is None:
            if self._steps >= 2 * self._control.half_life:
                self._reference = self._recent
        elif self._steps % CHECK_EVERY == 0 and drift(self._recent, self._reference).found:
            self._alarm = self._steps
            self.alarms.append(self._steps)
            self._recent, self._reference = self._empty, None

    def decide(self, current: Placement, speed: Floats, gone: Collection[NodeId]) -> Migration | None:
        """What to move, None where it does not pay. speed: [devices] measured rows per second."""
        self._alarm = None
        names = self._devices.names
        memory = np.where([name in gone for name in names], 0, self._devices.memory)
        seen = Devices(names, speed, memory, self._devices.bandwidth, self._devices.site)
        load = self._recent.load if self._recent.steps else np.ones_like(self._recent.rows)
        target = self._place(Problem(load, self._bytes, seen, current))
        whole = Devices(names, speed, self._devices.memory, self._devices.bandwidth, self._devices.site)
        problem = Problem(load, self._bytes, whole, current)
        decision = decide(problem, target, self._control.horizon, self._budget, gone)
        if self._control.horizon and not decision.worth:
            return None
        return decision.migration if decision.migration.stages else None
