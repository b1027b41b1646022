"""How good any placement or dispatch could be: lower bounds in seconds a step, for one layer.

    fluid ≤ replica bound ≤ dispatch optimum of a placement ≤ makespan of whole rows

`load` is [experts] rows per step, `speed` [devices] rows per second.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cluster.balance.choice import Copies
from cluster.balance.fleet import Booleans, Floats, Integers
from cluster.balance.problem import Placement, Problem
from kernels.flow import flow_rows

_LEAST = 1e-300
_TIGHT = 1 - 1e-12
"""Rounding does not make an expert need one device more."""

_UNITS = 2.0**44
"""Into how many whole parts a load is cut for an optimum of loads that need not be whole."""


def fluid_bound(load: Floats, speed: Floats) -> float:
    """As if rows were water and every device held every expert: Σ load / Σ speed."""
    return float(load.sum() / speed.sum())


def fluid_is_possible(load: Floats, speed: Floats, copies: Integers) -> Booleans:
    """[layers] bool: so many copies of a layer do not rule the fluid bound out; load: [layers, experts]."""
    fastest = np.cumsum(np.sort(speed)[::-1])
    time = np.maximum(load.sum(axis=1, keepdims=True) / fastest[-1], _LEAST)
    needed = np.searchsorted(fastest, load / time * _TIGHT) + 1
    possible: Booleans = needed.sum(axis=1) <= copies
    return possible


def replica_bound(load: Floats, speed: Floats, copies: int) -> float:
    """The least time that any placement of so many copies allows, at least the fluid bound.

    The smallest T with Σ r_e(T) ≤ copies, where r_e(T) is the number of devices, fastest first, that are
    needed to do the rows of expert e alone within T.
    """
    fluid = fluid_bound(load, speed)
    if fluid_is_possible(load[None], speed, np.array([copies]))[0]:
        return fluid
    fastest = np.cumsum(np.sort(speed)[::-1])
    alone = load[:, None] / fastest  # [experts, devices] seconds of an expert on so many devices
    times = np.unique(alone[alone >= fluid])
    low, high = 0, times.size - 1
    while low < high:
        middle = (low + high) // 2
        needed = np.maximum(1, (alone > times[middle]).sum(axis=1) + 1).sum()
        low, high = (low, middle) if needed <= copies else (middle + 1, high)
    return float(times[low])


def dispatch_bound(load: Floats, hosts: Booleans, speed: Floats) -> float:
    """The least time in which rows, split at will, can be done where `hosts` ([experts, devices]) allows.

    T = max over sets S of experts of load(S) / speed(devices that host any of S), to a relative 2**-30. Every
    expert with load has a copy.
    """
    return dispatch_time(load, Copies.of(hosts), speed)


def dispatch_time(load: Floats, copies: Copies, speed: Floats) -> float:
    """`dispatch_bound` for hosts in compressed form."""
    total = float(load.sum())
    if total == 0:
        return 0.0
    unit = total / _UNITS
    rows = np.rint(load / unit).astype(np.int64)
    out = np.empty(copies.device.size, np.int64)
    still = np.zeros(speed.size)
    return float(flow_rows(rows, copies.starts, copies.device, speed, still, out)) * unit


@dataclass(frozen=True)
class LayerBounds:
    """Seconds a step of one layer. dispatch: the optimum for a placement; the others hold for any placement
    with as many copies."""

    fluid: float
    replica: float
    dispatch: float

    @property
    def balancedness(self) -> float:
        """fluid / dispatch, 1 at best; with equal speeds it is mean over largest device load."""
        return self.fluid / self.dispatch if self.dispatch else 1.0

    @property
    def attainable(self) -> float:
        """The balancedness that no placement with as many copies exceeds."""
        return self.fluid / self.replica if self.replica else 1.0


def layer_bounds(problem: Problem, placement: Placement) -> dict[int, LayerBounds]:
    """By layer, of those that have experts."""
    speed, found = problem.devices.speed, {}
    for layer in np.flatnonzero(problem.sparse):
        load, hosts = problem.load[layer], placement.hosts[layer]
        found[int(layer)] = LayerBounds(
            fluid_bound(load, speed),
            replica_bound(load, speed, int(hosts.sum())),
            dispatch_bound(load, hosts, speed),
        )
    return found
