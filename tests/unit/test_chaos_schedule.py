"""Faults and requests of a chaos run: the same from the same seed, and never more than may happen at once."""

from __future__ import annotations

from itertools import islice, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.experiments.chaos.injection import FLAP_S, steps
from cluster.experiments.chaos.run import Plan
from cluster.experiments.chaos.schedule import LASTS_S, Fault, Kind, Shape, allowed, first, within
from cluster.experiments.chaos.workload import Manner, questions, turns

SEEDS = st.integers(0, 2**32 - 1)
SHAPES = st.builds(
    Shape,
    nodes=st.integers(3, 5),
    routers=st.integers(1, 3),
    gateways=st.integers(1, 3),
    nodes_away=st.integers(1, 2),
)


def seed(number: int) -> np.random.SeedSequence:
    return np.random.SeedSequence(number)


@given(SEEDS, SHAPES)
def test_enough_are_left_at_every_moment(number, shape) -> None:
    faults = first(seed(number), shape, 60)
    for moment in {edge for fault in faults for edge in (fault.at_s, fault.over_s, fault.back_s - 1e-6)}:
        now = [fault for fault in faults if fault.at_s <= moment < fault.back_s]
        victims = [victim for fault in now for victim in fault.victims]
        assert len(set(victims)) == len(victims)
        for role in ("node", "router", "gateway", "controller"):
            away = [fault for fault in now if fault.kind.role == role and fault.takes_away]
            assert sum(len(fault.victims) for fault in away) <= shape.may_be_away(role)


@given(SEEDS, SHAPES)
def test_faults_are_in_order_and_of_what_there_is(number, shape) -> None:
    faults = first(seed(number), shape, 40)
    assert [fault.number for fault in faults] == list(range(40))
    assert all(one.at_s < other.at_s for one, other in pairwise(faults))
    for fault in faults:
        least, most = LASTS_S[fault.kind.kills]
        assert least <= fault.for_s <= most
        assert len(fault.victims) == fault.kind.at_once
        assert set(fault.victims) <= set(shape.names(fault.kind.role))


@given(SEEDS)
def test_a_longer_run_begins_as_a_shorter_one(number) -> None:
    faults = first(seed(number), Shape(), 30)
    assert first(seed(number), Shape(), 10) == faults[:10]
    shorter = within(seed(number), Shape(), faults[15].at_s)
    assert shorter == [fault for fault in faults[:15] if fault.over_s < faults[15].at_s]


def test_every_kind_is_tried() -> None:
    assert {fault.kind for fault in first(seed(0), Shape(), 200)} == set(Kind)


def test_the_last_of_a_role_is_left_alone() -> None:
    kinds = {fault.kind for fault in first(seed(0), Shape(routers=1, gateways=1), 100)}
    pairs = {Kind.kill_router, Kind.freeze_router, Kind.kill_gateway, Kind.freeze_gateway}
    assert kinds == set(Kind) - pairs


def test_two_nodes_are_killed_where_a_third_copy_is() -> None:
    assert Kind.kill_nodes not in {fault.kind for fault in first(seed(0), Shape(nodes_away=1), 200)}
    at_once = [fault for fault in first(seed(0), Shape(), 1000) if fault.kind is Kind.kill_nodes]
    assert {len(set(fault.victims)) for fault in at_once} == {2}
    assert len({fault.victims for fault in at_once}) > 1


def test_the_first_of_each_role_grows_old_in_a_soak() -> None:
    faults = first(seed(0), Shape(spared=True), 200)
    assert {victim for fault in faults if fault.kind.kills for victim in fault.victims} == {
        "node-1",
        "node-2",
        "node-3",
        "router-1",
        "gateway-1",
    }
    assert {"node-0", "router-0", "gateway-0"} < {victim for fault in faults for victim in fault.victims}


@pytest.mark.parametrize(
    ("kind", "victims", "at_s", "may"),
    [
        (Kind.freeze_node, "node-1", 12.9, True),
        (Kind.kill_nodes, "node-1 node-2", 12.9, False),  # node-0 is not back yet
        (Kind.kill_nodes, "node-1 node-2", 13.1, True),
        (Kind.kill_nodes, "node-0 node-2", 12.9, False),
        (Kind.tamper_node, "node-0", 12.9, False),
        (Kind.slow_node, "node-1", 11.0, True),  # it goes on
        (Kind.slow_node, "node-0", 11.0, False),  # one at a time
        (Kind.kill_router, "router-0", 11.0, True),
    ],
)
def test_what_may_happen_after_a_kill(kind, victims, at_s, may) -> None:
    before = [Fault(0, Kind.kill_node, ("node-0",), at_s=7.0, for_s=1.0)]
    assert allowed(before, Fault(1, kind, tuple(victims.split()), at_s, 1.0), Shape()) is may


def test_steps_of_a_fault() -> None:
    assert steps(Fault(0, Kind.kill_node, ("node-0",), 5.0, 1.5)) == [(0.0, "kill"), (1.5, "start")]
    tampered = steps(Fault(0, Kind.tamper_node, ("node-0",), 5.0, 1.5))
    assert tampered == [(0.0, "kill"), (0.0, "tamper"), (1.5, "start")]
    flaps = steps(Fault(0, Kind.flap_node, ("node-0",), 5.0, 4.2 * FLAP_S))
    assert [what for _, what in flaps] == ["freeze", "thaw", "freeze", "thaw", "thaw"]
    assert [after for after, _ in flaps] == sorted(after for after, _ in flaps)
    short = steps(Fault(0, Kind.flap_node, ("node-0",), 5.0, FLAP_S / 2))
    assert [what for _, what in short] == ["freeze", "thaw"]


def test_a_plan_repeats_itself() -> None:
    one, other = Plan(seed=3, count=20), Plan(seed=3, count=20)
    assert one.faults() == other.faults()
    asked = one.questions(vocab=100)
    assert asked == other.questions(vocab=100)
    drawn = [[list(islice(each, 20)) for each in plan.turns(asked)] for plan in (one, other)]
    assert drawn[0] == drawn[1]
    assert drawn[0][0] != drawn[0][1]  # no two clients ask the same
    assert Plan(seed=4, count=20).faults() != one.faults()


@given(SEEDS)
def test_turns_fit_their_questions(number) -> None:
    asked = questions(seed(number), vocab=50)
    for turn in islice(turns(seed(number), asked), 50):
        assert 1 <= turn.after < asked[turn.question].sampling.max_tokens
        assert (turn.deadline_s > 0) == (turn.manner is Manner.deadline)
    assert all(0 <= token < 50 for each in asked for token in each.prompt_ids)
    assert {each.sampling.temperature > 0 for each in asked} == {True, False}
