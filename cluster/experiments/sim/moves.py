"""Migrations in the background of a simulation: loads take their time on the links, then the table
changes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from cluster.balance.fleet import Devices
from cluster.balance.migration import Drop, Load, Migration, Stage
from cluster.experiments.sim.dispatch import Nodes
from cluster.experiments.sim.table import Table


class Clock(Protocol):
    """The simulation, as moves need it."""

    now: float

    def at(self, time: float, do: Callable[..., None], *arguments: Any) -> None: ...

    def copied(self, size: int) -> None: ...


class Moves:
    """At most one migration. A copy is used as soon as it is complete; copies go when their stage has
    ended.
    """

    def __init__(
        self, table: Table, nodes: Nodes, devices: Devices, share: float, library: float, clock: Clock
    ) -> None:
        self._table, self._nodes, self._devices, self._clock = table, nodes, devices, clock
        self._share, self._library = share, library
        self._index = {name: number for number, name in enumerate(devices.names)}
        self._stages: list[Stage] = []
        self._number = 0  # of the migration; events of one that was given up are void

    @property
    def active(self) -> bool:
        return bool(self._stages)

    def start(self, migration: Migration) -> None:
        self._stages = list(migration.stages)
        self._number += 1
        self._stage()

    def abort(self) -> None:
        """Forget what is not complete. The table needs no repair: it never named such a copy."""
        self._stages = []
        self._number += 1
        self._nodes.links[:] = 1.0

    def _stage(self) -> None:
        """Begin the first of the remaining stages: each link and each disk carries its loads one after
        another.
        """
        stage, count, now = self._stages[0], len(self._devices), self._clock.now
        into, out, disk = np.full(count, now), np.full(count, now), np.full(count, now)
        for load in stage.loads:
            to = self._index[load.to]
            if load.source is None:
                end = disk[to] = disk[to] + load.bytes / self._library
            else:
                source = self._index[load.source]
                bandwidth = self._devices.bandwidth
                rate = self._share * min(bandwidth[source], bandwidth[to])
                end = into[to] = out[source] = max(into[to], out[source]) + load.bytes / rate
            self._clock.at(float(end), self._loaded, self._number, load)
        self._nodes.links[:] = np.where((into > now) | (out > now), 1 - self._share, 1.0)
        self._clock.at(float(np.max([into, out, disk])), self._ended, self._number)

    def _loaded(self, number: int, load: Load) -> None:
        if number == self._number:
            self._table.put(load.expert.layer, load.expert.index, self._index[load.to], True)
            self._clock.copied(load.bytes)

    def _ended(self, number: int) -> None:
        if number != self._number:
            return
        for drop in self._stages.pop(0).drops:
            self._drop(drop)
        self._nodes.links[:] = 1.0
        if self._stages:
            self._stage()

    def _drop(self, drop: Drop) -> None:
        self._table.put(drop.expert.layer, drop.expert.index, self._index[drop.device], False)
