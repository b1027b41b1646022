"""How fast a router thinks that nodes are, as their answers tell."""

from __future__ import annotations

import numpy as np
import pytest

from cluster.dispatch.pace import Pace
from cluster.types import NodeId

ROWS, SECONDS = 20, 0.005
SPEED = ROWS / SECONDS


def known() -> Pace:
    """Two nodes that have given hundreds of answers."""
    pace = Pace([NodeId("a"), NodeId("b")])
    experts = np.zeros(2 * ROWS, np.int32)
    pace.loads[:, 1] = round(1e6 * SECONDS)
    for _ in range(1000):
        pace.observe(experts, np.array([0, ROWS, 2 * ROWS]), np.zeros(1, np.int64))
    assert pace.speed == pytest.approx([SPEED, SPEED])
    return pace


def test_one_late_answer_hardly_changes_what_is_known() -> None:
    """The node was kept from its core for a moment."""
    pace = known()
    pace.overdue(1, ROWS, 20 * SECONDS, now=1.0)
    assert 0.9 * SPEED < pace.speed[1] < SPEED
    pace.overdue(1, ROWS, 20 * SECONDS, now=9.0)
    assert pace.speed[1] > 0.8 * SPEED


def test_a_node_that_is_late_again_at_once_is_slow() -> None:
    pace = known()
    for answer in range(3):
        pace.overdue(1, ROWS, 10 * SECONDS, now=1.0 + answer * 12 * SECONDS)
    assert pace.speed[1] < 0.2 * SPEED
    assert pace.speed[0] == pytest.approx(SPEED)


def test_it_is_as_fast_as_before_when_its_answers_are() -> None:
    pace = known()
    for answer in range(4):
        pace.overdue(1, ROWS, 10 * SECONDS, now=1.0 + answer * 12 * SECONDS)
    experts, pace.loads[1, 1] = np.zeros(ROWS + 2, np.int32), round(1e6 * SECONDS / 10)
    for _ in range(600):  # two rows at a time: it is asked for few
        pace.observe(experts, np.array([0, ROWS, ROWS + 2]), np.zeros(1, np.int64))
    assert pace.speed[1] > 0.9 * SPEED


def test_what_is_known_of_a_node_goes_with_it_to_another_table() -> None:
    pace = known()
    pace.overdue(1, ROWS, 10 * SECONDS, now=1.0)
    other = pace.over([NodeId("b"), NodeId("c")])
    assert other.speed[0] == pace.speed[1]
    other.overdue(0, ROWS, 10 * SECONDS, now=1.1)
    assert other.speed[0] < 0.3 * SPEED
