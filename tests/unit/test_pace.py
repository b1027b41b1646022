"""A paced node takes the time of the device that it stands for, and computes the same."""

from __future__ import annotations

import numpy as np
import pytest

from cluster.experiments.live.pace import PacedCompute, row_rate
from cluster.experiments.sim.model import Device, Model

MODEL = Model(hidden=64, width=32, bits=8.0)


class Clock:
    """Time passes when somebody computes or sleeps."""

    def __init__(self) -> None:
        self.now, self.slept = 0.0, 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept += seconds


class Compute:
    def __init__(self, clock: Clock, seconds: float) -> None:
        self.clock, self.seconds = clock, seconds

    def run(self, layer, counts, experts, rows, scales):
        self.clock.now += self.seconds
        return np.full((len(experts), 64), layer, np.uint16)


@pytest.mark.parametrize(("takes", "expected"), [(0.001, 0.05), (0.2, 0.2)])
def test_a_call_lasts_as_long_as_on_the_device_and_no_less_than_it_takes(takes, expected):
    clock = Clock()
    paced = PacedCompute(Compute(clock, takes), row_rate(100.0, MODEL), MODEL, clock, clock.sleep)
    experts = np.array([3, 3, 0, 7, 7], np.int32)
    results = paced.run(2, np.ones(5, np.uint8), experts, np.zeros((5, 64), np.int8), np.ones(5, np.float32))
    assert clock.now == pytest.approx(expected)
    assert (results == 2).all()
    assert results.shape == (5, 64)


def test_an_expert_costs_its_reading_or_its_rows():
    clock = Clock()
    device = Device(MODEL.ops_per_row / 0.01, MODEL.expert_bytes / 0.03, 0, 0.5, 0.0, 1.0, 1.0)
    paced = PacedCompute(Compute(clock, 0.0), device, MODEL, clock, clock.sleep)
    experts = np.array([1] * 10 + [2], np.int32)
    paced.run(0, np.ones(11, np.uint8), experts, np.zeros((11, 64), np.int8), np.ones(11, np.float32))
    assert clock.slept == pytest.approx(0.5 + 10 * 0.01 + 0.03)
