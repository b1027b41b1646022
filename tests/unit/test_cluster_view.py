"""What a gateway knows of the cluster: one value, replaced at once, whatever thread replaces it."""

from __future__ import annotations

import dataclasses

import pytest

from cluster.balance.load import LoadStats
from cluster.errors import ProtocolError
from cluster.gateway.cluster_view import ClusterView, Snapshot
from cluster.types import TIERS


def told(*names: str, **fields: object) -> dict[str, object]:
    members = [{"id": name, "role": "router", "stats": {"steps": 2}} for name in names]
    return {"members": members, "load": LoadStats.empty(1, 2, 8.0).to_wire(), "tiers": ["exact"], **fields}


def test_before_the_first_sync_there_is_nobody() -> None:
    view = ClusterView()
    assert view.now == Snapshot()
    assert (view.now.of("router"), view.now.total("router", "steps"), view.now.tiers) == ([], 0.0, TIERS)


def test_an_update_changes_nothing_that_was_read_before() -> None:
    view = ClusterView()
    view.update(told("a"))
    before = view.now
    view.update(told("a", "b"))
    assert (before.total("router", "steps"), view.now.total("router", "steps")) == (2.0, 4.0)
    assert before.told is not view.now.told
    with pytest.raises(dataclasses.FrozenInstanceError):
        before.members = ()  # type: ignore[misc]


def test_broken_statistics_leave_all_as_it_was() -> None:
    view = ClusterView()
    view.update(told("a"))
    before = view.now
    with pytest.raises(ProtocolError):
        view.update(told("b", load={"half_life": 1}))
    assert view.now is before
