"""Which replica computes which rows: one decision a layer and step, between the gate and the dispatch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cluster.balance.fleet import Floats, Integers, read_only
from cluster.balance.problem import Booleans
from cluster.errors import ConfigError


@dataclass(frozen=True, eq=False, repr=False)
class Batch:
    """The rows of one layer of one step, and who could compute them. The arrays are kept read-only.

    rows: [experts] int64 ≥ 0.
    hosts: [experts, devices] bool; an expert with rows has at least one.
    speed: [devices] float64 > 0, rows per second.
    backlog: [devices] float64 ≥ 0, seconds of work that wait there already.

    Raises ConfigError on anything else.
    """

    rows: Integers
    hosts: Booleans
    speed: Floats
    backlog: Floats

    def __post_init__(self) -> None:
        for field, dtype in (
            ("rows", np.int64),
            ("hosts", np.bool_),
            ("speed", np.float64),
            ("backlog", np.float64),
        ):
            object.__setattr__(self, field, read_only(getattr(self, field), dtype))
        experts, devices = self.rows.size, self.speed.size
        shapes = (self.rows.shape, self.hosts.shape, self.speed.shape, self.backlog.shape)
        if shapes != ((experts,), (experts, devices), (devices,), (devices,)):
            raise ConfigError(f"rows, hosts, speed and backlog do not agree: their shapes are {shapes}")
        if (self.rows < 0).any():
            raise ConfigError("a batch has a negative number of rows")
        if not (np.isfinite(self.speed).all() and (self.speed > 0).all()):
            raise ConfigError("a device's speed must be above 0 and finite")
        if not (np.isfinite(self.backlog).all() and (self.backlog >= 0).all()):
            raise ConfigError("a device's backlog must be 0 or more seconds and finite")
        for expert in np.flatnonzero((self.rows > 0) & ~self.hosts.any(axis=1)):
            raise ConfigError(f"expert {expert} has {self.rows[expert]} rows and no device that holds it")

    def __repr__(self) -> str:
        experts, devices = self.hosts.shape
        return f"Batch({int(self.rows.sum())} rows, {experts} experts, {devices} devices)"


ChoicePolicy = Callable[[Batch], Integers]
"""Returns [experts, devices] int64 rows per replica: row sums are `rows`, zero where hosts is False."""
