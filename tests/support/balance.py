"""Small placement problems drawn by hypothesis, and slow, obvious counterparts."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import strategies as st

from cluster.balance.fleet import Devices
from cluster.balance.problem import Placement, Problem
from cluster.types import NodeId


@st.composite
def problems(draw, most_layers: int = 3, most_experts: int = 8, most_devices: int = 5) -> Problem:
    """Unequal speeds, memories, sizes and sites, dense layers; most have room for a copy of every expert."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    layers, experts = draw(st.integers(1, most_layers)), draw(st.integers(1, most_experts))
    count = draw(st.integers(1, most_devices))
    sizes = rng.integers(1, 4, (layers, experts)) if draw(st.booleans()) else np.full((layers, experts), 2)
    sizes[rng.random(layers) < 0.2] = 0
    sizes[-1] = np.maximum(sizes[-1], 1)
    load = rng.gamma(1.0, 50.0, (layers, experts)) * (sizes > 0) * (rng.random((layers, experts)) < 0.9)
    memory = rng.multinomial(int(sizes.sum()), np.full(count, 1 / count))
    memory = memory + rng.integers(2 if count > 1 else 0, 9, count)
    devices = Devices(
        tuple(NodeId(f"n{index}") for index in range(count)),
        rng.choice([0.5, 1.0, 1.0, 3.0], count),
        memory,
        np.full(count, 1e8),
        rng.integers(0, 2, count),
    )
    return Problem(load, sizes, devices)


def least_makespan(load: np.ndarray, hosts: np.ndarray, speed: np.ndarray) -> float:
    """max over sets of experts of their load over the speed of all their devices; hosts: [E, D]."""
    experts = range(load.size)
    sets = [list(s) for n in experts for s in itertools.combinations(experts, n + 1)]
    return float(max(load[s].sum() / speed[hosts[s].any(axis=0)].sum() for s in sets))


def every_placement(experts: int, devices: int, slots: int) -> list[Placement]:
    """All placements of one layer that give every expert a copy and every device at most `slots`."""
    held = [np.array(bits, np.bool_) for bits in itertools.product((False, True), repeat=experts * devices)]
    hosts = [bits.reshape(1, experts, devices) for bits in held]
    return [Placement(h) for h in hosts if h.any(axis=2).all() and h.sum(axis=1).max() <= slots]
