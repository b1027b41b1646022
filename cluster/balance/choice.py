"""Which replica computes which rows: one decision a layer and step, between the gate and the dispatch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.balance.fleet import Booleans, Floats, Integers, read_only
from cluster.errors import ConfigError
from kernels import choice
from kernels.flow import flow_rows


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


@dataclass(frozen=True, eq=False, repr=False)
class Copies:
    """The True entries of [experts, devices] hosts by expert, as kernels read them.

    starts: [experts + 1] int64, device: [copies] int32; expert e is on device[starts[e] : starts[e + 1]],
    ascending.
    """

    starts: Integers
    device: npt.NDArray[np.int32]
    devices: int

    @classmethod
    def of(cls, hosts: Booleans) -> Copies:
        starts = np.zeros(len(hosts) + 1, np.int64)
        np.cumsum(hosts.sum(axis=1), out=starts[1:])
        return cls(starts, np.nonzero(hosts)[1].astype(np.int32), hosts.shape[1])

    def spread(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """[experts, devices] with `values`, one a copy, at their places and 0 elsewhere."""
        full = np.zeros((self.starts.size - 1, self.devices), values.dtype)
        full[np.repeat(np.arange(len(full)), np.diff(self.starts)), self.device] = values
        return full


def even_split(batch: Batch) -> Integers:
    """The same number of rows to every replica of an expert: what EPLB assumes."""
    return _chosen(batch, lambda copies, out: choice.even_rows(batch.rows, copies.starts, out))


def least_loaded(batch: Batch) -> Integers:
    """Row by row to the replica whose device would end first."""
    return _chosen(batch, lambda copies, out: choice.least_loaded_rows(*_arguments(batch, copies), out))


def power_of_two(batch: Batch, seed: int = 0) -> Integers:
    """Row by row to the better of two random replicas; the same draws for the same seed."""
    return _chosen(
        batch, lambda copies, out: choice.power_of_two_rows(*_arguments(batch, copies), np.uint64(seed), out)
    )


def flow(batch: Batch) -> Integers:
    """The smallest makespan that whole rows allow: max over devices with rows of backlog + rows / speed."""
    return _chosen(batch, lambda copies, out: flow_rows(*_arguments(batch, copies), out))


def fewest_distinct(batch: Batch) -> Integers:
    """Every expert on one device, the largest number of distinct experts on a device as small as can be.

    Speeds and backlogs do not count: it is for decode batches whose time is the reading of weights.
    """
    return _chosen(
        batch,
        lambda copies, out: choice.fewest_distinct_rows(
            batch.rows, copies.starts, copies.device, copies.devices, out
        ),
    )


def _arguments(batch: Batch, copies: Copies) -> tuple[npt.NDArray[Any], ...]:
    return batch.rows, copies.starts, copies.device, batch.speed, batch.backlog


def _chosen(batch: Batch, choose: Callable[[Copies, Integers], object]) -> Integers:
    copies = Copies.of(batch.hosts)
    out = np.zeros(copies.device.size, np.int64)
    choose(copies, out)
    return copies.spread(out)


def makespan(batch: Batch, chosen: Integers) -> float:
    """Seconds until the last device that got rows ends; chosen: [experts, devices] rows."""
    rows = chosen.sum(axis=0)
    return float(np.max((batch.backlog + rows / batch.speed)[rows > 0], initial=0.0))


def distinct_experts(chosen: Integers) -> Integers:
    """[devices] number of experts with rows; chosen: [experts, devices] rows."""
    distinct: Integers = np.count_nonzero(chosen, axis=0)
    return distinct
