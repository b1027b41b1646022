"""Fleets, problems and placements: valid by construction, with errors that name what is wrong."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.balance.choice import Batch
from cluster.balance.fleet import Devices, devices_with, equal_devices
from cluster.balance.problem import Placement, Problem
from cluster.errors import ConfigError, OutOfMemoryBudget
from cluster.types import NodeId

SIZES = np.array([[10, 20], [0, 0], [30, 5]])
LOAD = np.array([[1.0, 2.0], [0.0, 0.0], [0.0, 3.0]])


def fleet(**changes: object) -> Devices:
    fields = {
        "names": (NodeId("a"), NodeId("b")),
        "speed": np.array([1.0, 2.0]),
        "memory": np.array([100, 50]),
        "bandwidth": np.array([1e6, 1e6]),
        "site": np.array([0, 1]),
    }
    return Devices(**(fields | changes))  # type: ignore[arg-type]


def hosts(*copies: tuple[int, int, int]) -> np.ndarray:
    found = np.zeros((3, 2, 2), np.bool_)
    for copy in copies:
        found[copy] = True
    return found


ONE_EACH = ((0, 0, 0), (0, 1, 1), (2, 0, 0), (2, 1, 1))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"names": ()}, "at least one device"),
        ({"names": (NodeId("a"), NodeId("a"))}, "twice"),
        ({"speed": np.array([1.0, 0.0])}, "speed of device b is 0.0"),
        ({"speed": np.array([1.0, np.nan])}, "speed of device b is nan"),
        ({"speed": np.array([np.inf, 1.0])}, "speed of device a is inf"),
        ({"memory": np.array([-1, 1])}, "memory of device a is -1"),
        ({"memory": np.array([0.5, 1])}, "whole numbers"),
        ({"bandwidth": np.array([1.0])}, "bandwidth of the fleet has shape"),
    ],
)
def test_a_fleet_that_makes_no_sense_is_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        fleet(**changes)


def test_arrays_of_a_fleet_cannot_be_written():
    with pytest.raises(ValueError, match="read-only"):
        equal_devices(2, 10).speed[0] = 5


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"load": LOAD[:2]}, "expert_bytes has shape"),
        ({"load": -LOAD}, "load holds negative"),
        ({"load": LOAD[0]}, "not of shape"),
        ({"load": LOAD + 1}, "without experts"),
        ({"expert_bytes": SIZES * np.array([1, 0])}, "0 or fewer bytes"),
        ({"coactivation": np.zeros((3, 2, 1))}, "coactivation has shape"),
        ({"affinity": np.full((2, 2, 2), np.inf)}, "affinity holds"),
        ({"current": Placement(hosts(*ONE_EACH)[:1])}, "current placement is"),
        ({"current": Placement(hosts(*ONE_EACH, (1, 0, 0), (1, 1, 0)))}, "has none"),
    ],
)
def test_a_problem_that_makes_no_sense_is_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        Problem(**({"load": LOAD, "expert_bytes": SIZES, "devices": fleet()} | changes))


def test_impossible_memory_says_by_how_many_bytes():
    with pytest.raises(OutOfMemoryBudget, match="needs 7 bytes more"):
        Problem(LOAD, SIZES, devices_with([1, 1], [50, 8]))


def test_a_placement_is_checked_against_its_problem():
    problem = Problem(LOAD, SIZES, devices_with([1, 1], [60, 24]))
    with pytest.raises(OutOfMemoryBudget, match="device d1 would hold 1 bytes more"):
        problem.check(Placement(hosts(*ONE_EACH)))
    with pytest.raises(ConfigError, match="layer 1 is dense"):
        problem.check(Placement(hosts(*ONE_EACH, (1, 0, 0), (1, 1, 0))))
    with pytest.raises(ConfigError, match="answers a problem of"):
        problem.check(Placement(hosts(*ONE_EACH)[:2]))


def test_an_expert_without_a_copy_is_refused():
    with pytest.raises(ConfigError, match="expert 1 of layer 2 has no copy"):
        Placement(hosts(*ONE_EACH[:3]))


def test_moved_bytes_are_those_that_a_device_lacks():
    now = Placement(hosts(*ONE_EACH))
    problem = Problem(LOAD, SIZES, fleet(), current=now)
    assert problem.moved_bytes(now) == 0
    later = Placement(hosts((0, 0, 1), (0, 1, 1), (2, 0, 0), (2, 0, 1), (2, 1, 1)))
    assert problem.moved_bytes(later) == 10 + 30
    assert Problem(LOAD, SIZES, fleet()).moved_bytes(later) == 0
    assert later.device_bytes(SIZES).tolist() == [30, 10 + 20 + 30 + 5]


@given(st.data(), st.integers(1, 4), st.integers(1, 5), st.integers(1, 4))
def test_a_placement_survives_the_live_table(data, layers, experts, devices):
    holders = st.sets(st.integers(0, devices - 1), min_size=1)
    wanted = np.zeros((layers, experts, devices), np.bool_)
    for layer in range(layers):
        if data.draw(st.booleans()):
            for expert in range(experts):
                wanted[layer, expert, list(data.draw(holders))] = True
    names = [NodeId(f"n{index}") for index in range(devices)]
    table = Placement(wanted).to_table(names, epoch=2, version=3)
    assert (table.epoch, table.version) == (2, 3)
    renamed = data.draw(st.permutations(range(devices)))
    again = Placement.from_table(table, [names[index] for index in renamed], experts)
    assert (again.hosts == wanted[:, :, renamed]).all()


def test_the_preferred_holders_are_spread():
    everywhere = Placement(np.ones((1, 6, 3), np.bool_)).to_table([NodeId(n) for n in "abc"], 1, 1)
    assert np.bincount(everywhere.owners(0)).tolist() == [2, 2, 2]


def test_a_table_of_other_nodes_or_experts_is_refused():
    table = Placement(hosts(*ONE_EACH)).to_table([NodeId("a"), NodeId("b")], 1, 1)
    with pytest.raises(ConfigError, match="nodes that the fleet lacks: b"):
        Placement.from_table(table, [NodeId("a")], 2)
    with pytest.raises(ConfigError, match="layer 0 of the table has 2 experts, not 3"):
        Placement.from_table(table, [NodeId("a"), NodeId("b")], 3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rows": [1, -1]}, "negative number of rows"),
        ({"rows": [1.5, 1]}, "whole numbers"),
        ({"rows": [1, 1, 1]}, "do not agree"),
        ({"speed": [1.0, 0.0]}, "speed must be above 0"),
        ({"backlog": [0.0, -1.0]}, "backlog must be 0 or more"),
        ({"hosts": [[True, True], [False, False]]}, "expert 1 has 1 rows and no device"),
    ],
)
def test_a_batch_that_makes_no_sense_is_refused(changes, words):
    fields = {"rows": [1, 1], "hosts": [[True, False], [False, True]], "speed": [1.0, 2.0], "backlog": [0, 0]}
    Batch(**fields)
    with pytest.raises(ConfigError, match=words):
        Batch(**(fields | changes))
