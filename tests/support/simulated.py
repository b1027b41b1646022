"""Small work and fleets for tests of the simulator."""

from __future__ import annotations

from typing import Any

import numpy as np

from cluster.experiments.sim.inputs import Fleet, Work
from cluster.experiments.sim.model import Device, Model

MODEL = Model(hidden=64, width=32, bits=8)
DEVICE = Device(ops=1e9, read=1e8, memory=1 << 30, message_s=1e-4, latency_s=1e-4, bandwidth=1e8, storage=1e8)


def work(steps: int = 4, layers: int = 3, experts: int = 6, tokens: int = 8, seed: int = 0) -> Work:
    """Every token asks for two experts of each layer, any with the same probability."""
    rng = np.random.default_rng(seed)
    rows = rng.multinomial(tokens * 2, [1 / experts] * experts, size=(steps, layers))
    return Work(rows.astype(np.int64), np.full(steps, tokens))


def fleet(count: int = 3, **changes: Any) -> Fleet:
    return Fleet((DEVICE,) * count, np.full(count, 1 << 30), **changes)
