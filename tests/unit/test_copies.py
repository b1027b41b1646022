"""Copies beyond the first: when they are made, and when they are not tried again."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.balance.copies import complete
from cluster.controller import repair, syncing
from cluster.controller.repair import Memory, Reason
from cluster.controller.service import ControllerService
from support.losses import ONE, SHAPE, TWO, copies, node, repaired, router, serving, without


def test_copies_are_made_when_their_node_stays_away() -> None:
    state = repaired(serving(), TWO)
    state = without(state, "node-0")
    memory = repair.remember(Memory(), state, 100.0)
    assert memory.losses == {"node-0": (1, 1)}
    assert repair.due(memory, state, TWO, 100.0) is None
    assert repair.due(memory, state, TWO, 100.0 + TWO.replicate_after_s) is Reason.copies
    state = repaired(state, TWO)
    assert state.table.nodes == ("node-1", "node-2")
    assert copies(state.table) == {2}
    assert repair.due(repair.remember(memory, state, 200.0), state, TWO, 200.0) is not Reason.copies


def test_without_losses_and_with_enough_copies_there_is_nothing_to_do() -> None:
    state = serving()
    memory = repair.remember(Memory(), state, 0.0)
    assert repair.due(memory, state, ONE, 0.0) is None
    assert not repair.propose(state).tables
    assert repair.due(memory, state, TWO, 0.0) is Reason.copies


def test_copies_that_no_memory_can_take_are_not_tried_again_and_again() -> None:
    state = serving(stats={"memory_bytes": 800})
    memory = repair.remember(Memory(), state, 0.0)
    assert repair.due(memory, state, TWO, 0.0) is Reason.copies
    assert not repair.propose(state, TWO).tables
    assert repair.lacking(state, TWO) == 24
    memory = repair.remember(repair.fruitless(memory, state), state, 1.0)
    assert repair.due(memory, state, TWO, 1e6) is None
    for more in (node("node-3"), node("node-1", incarnation=2, table=(1, 1))):
        assert repair.due(memory, syncing.sync(state, more), TWO, 1e6) is Reason.copies
    moved = dataclasses.replace(state, table=dataclasses.replace(state.table, version=2))
    assert repair.due(memory, syncing.sync(moved, router(table=(1, 2))), TWO, 1e6) is Reason.copies


def test_copies_that_a_node_could_not_load_are_tried_once_it_can() -> None:
    """Nothing was possible while its disk was full; that says nothing of later."""
    full = serving()
    for name in ("node-0", "node-1", "node-2"):
        full = syncing.sync(full, node(name, error=("CannotStore", "no room") if name == "node-2" else None))
    memory = repair.remember(repair.fruitless(Memory(), full), full, 1.0)
    assert repair.due(memory, full, TWO, 1e6) is None
    assert repair.due(memory, syncing.sync(full, node("node-2")), TWO, 1e6) is Reason.copies


def test_that_memory_is_short_for_copies_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    service = ControllerService(SHAPE, epoch=1, config=TWO, clock=lambda: now)
    service._state = serving(stats={"memory_bytes": 800})
    service.start()
    for _ in range(20):
        reason = service._look_for_losses()
        if reason is not None:
            service._repair(reason)
        now += 10.0
    service.shutdown()
    (said,) = (one.getMessage() for one in caplog.records if one.levelname == "WARNING")
    assert "24 copies lack" in said


@given(
    st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 4), st.integers(0, 1500), st.integers(1, 31)
)
def test_copies_are_completed_as_far_as_memories_allow(
    seed: int, devices: int, wanted: int, memory: int, able_bits: int
) -> None:
    rng = np.random.default_rng(seed)
    hosts = rng.random((3, 6, devices)) < 0.3
    sizes = np.full((3, 6), 100)
    sizes[1] = 0
    hosts[1] = False
    able = np.array([bool(able_bits >> place & 1) for place in range(devices)])
    limits = np.full(devices, memory)
    found = complete(hosts, sizes, limits, able, wanted)
    added = found & ~hosts
    assert (found >= hosts).all()
    assert not added[:, :, ~able].any()
    assert not found[1].any()
    assert (added.sum(axis=2) <= np.maximum(wanted - hosts.sum(axis=2), 0)).all()
    if able.any():
        assert found[[0, 2]].any(axis=2).all()
    held = np.einsum("led,le->d", found, sizes)
    over = (held > limits) & able
    for device in np.flatnonzero(over):  # only of what nobody else had
        sole = added[:, :, device] & ~hosts.any(axis=2)
        assert sole.any() or not added[:, :, device].any()
