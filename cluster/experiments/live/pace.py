"""A node as slow as another device: it computes, and then sleeps until that device would have ended.

Nodes of one machine share its cores, so that nothing is gained by moving work from one to another. Where
every call takes longer than its computing does, they are as independent as machines are.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import numpy as np

from cluster.compute.threads import Workers
from cluster.config import NodeConfig
from cluster.dispatch.transport import Array
from cluster.experiments.sim.model import Device, Model
from cluster.expert.node import ExpertCompute
from cluster.expert.store import ExpertStore
from cluster.fleet.roles.node import NodeRole
from cluster.fleet.roles.process import Place


def row_rate(rows_per_s: float, model: Model) -> Device:
    """A device that takes the same time for every row, and none for messages, links and reading."""
    return Device(rows_per_s * model.ops_per_row, math.inf, 0, 0.0, 0.0, math.inf, math.inf)


class PacedCompute:
    """An ExpertCompute whose calls last as long as `device` needs by the simulator's roofline, and no less
    than they take here. Results are those of `inner`. slowness: all of that so many times."""

    def __init__(
        self,
        inner: ExpertCompute,
        device: Device,
        model: Model,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.slowness = 1.0
        self._inner, self._device, self._model = inner, device, model
        self._clock, self._sleep = clock, sleep

    def run(self, layer: int, counts: Array, experts: Array, rows: Array, scales: Array) -> Array:
        """As `ExpertCompute.run`."""
        needed = self._device.service_s(np.bincount(experts).tolist(), self._model)
        until = self._clock() + self.slowness * needed
        results = self._inner.run(layer, counts, experts, rows, scales)
        left = until - self._clock()
        if left > 0:
            self._sleep(left)
        return results


SLOW = 10.0


class PacedNode(NodeRole):
    """A node role that is as slow as `device` with experts of `model`'s shape."""

    _slowness = 1.0
    _paced: PacedCompute | None = None

    def __init__(self, place: Place, config: NodeConfig, device: Device, model: Model) -> None:
        self._device, self._model = device, model
        super().__init__(place, config)

    def compute(self, store: ExpertStore, workers: Workers) -> ExpertCompute:
        self._paced = PacedCompute(super().compute(store, workers), self._device, self._model)
        self._paced.slowness = self._slowness
        return self._paced

    def slow_down(self) -> None:
        """From now on everything takes SLOW times as long."""
        self._set_slowness(SLOW)

    def speed_up(self) -> None:
        """Be as fast as before."""
        self._set_slowness(1.0)

    def _set_slowness(self, slowness: float) -> None:
        self._slowness = slowness
        if self._paced is not None:
            self._paced.slowness = slowness
