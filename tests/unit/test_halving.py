"""When a step is computed in two halves, with a clock of the test's own."""

from __future__ import annotations

import pytest

from cluster.router.halving import LEAST_LATENCY_S, WHOLE_EVERY, Halving, pays

LAYERS = 6


@pytest.mark.parametrize(
    ("latency_s", "step_s", "halves"),
    [
        (0.040, 6 * 0.040 + 6 * 0.014, True),
        (0.040, 6 * 0.040 + 6 * 0.039, True),
        (0.040, 6 * 0.040 + 6 * 0.041, False),
        (0.0003, 6 * 0.0003, False),  # a second message costs about as much
        (LEAST_LATENCY_S, 6 * LEAST_LATENCY_S, True),
        (0.0, 0.02, False),
    ],
)
def test_halves_pay_where_the_way_takes_longer_than_the_computing(
    latency_s: float, step_s: float, halves: bool
) -> None:
    assert pays(latency_s, step_s, LAYERS) is halves


class Steps:
    """An engine's steps, over links of `latency_s`, with `compute_s` a layer beside."""

    def __init__(self, fixed: int = 0) -> None:
        self.latency_s, self.compute_s, self.now = 0.0, 0.010, 0.0
        self.asked = 0
        self._halving = Halving(fixed, LAYERS, self._latency, lambda: self.now)

    def _latency(self) -> float:
        self.asked += 1
        return self.latency_s

    def go(self, steps: int = 1) -> list[int]:
        """Parts of so many steps."""
        parts = []
        for _ in range(steps):
            parts.append(self._halving.begin())
            self.now += LAYERS * (self.latency_s + self.compute_s / parts[-1])
            self._halving.end()
        return parts


def test_far_nodes_are_found_and_near_ones_found_again() -> None:
    steps = Steps()
    assert set(steps.go(WHOLE_EVERY)) == {1}
    steps.latency_s = 0.040
    assert set(steps.go(WHOLE_EVERY)) == {1}
    assert steps.go(WHOLE_EVERY) == [2] * (WHOLE_EVERY - 1) + [1]
    steps.latency_s = 0.001
    assert steps.go(WHOLE_EVERY) == [2] * (WHOLE_EVERY - 1) + [1]
    assert set(steps.go(WHOLE_EVERY)) == {1}


def test_a_larger_batch_that_computes_for_longer_is_not_halved_any_more() -> None:
    steps = Steps()
    steps.latency_s = 0.040
    steps.go(WHOLE_EVERY)
    assert steps.go() == [2]
    steps.compute_s = 0.500
    steps.go(WHOLE_EVERY - 1)
    assert steps.go() == [1]


@pytest.mark.parametrize("fixed", [1, 2])
def test_a_fixed_number_stays(fixed: int) -> None:
    steps = Steps(fixed)
    steps.latency_s = 0.040
    assert set(steps.go(3 * WHOLE_EVERY)) == {fixed}
    assert not steps.asked


def test_a_step_that_failed_is_not_counted() -> None:
    steps = Steps()
    steps.latency_s = 0.040
    steps._halving.begin()
    steps.now += 1000.0  # its transport raised: it has no end
    steps.go(WHOLE_EVERY - 1)
    assert steps.go() == [2]
