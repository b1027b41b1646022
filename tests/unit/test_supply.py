"""Whom a node asks for a blob, and when it gives up; no sockets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest

from cluster.balance.placement import PlacementTable
from cluster.config import NodeConfig
from cluster.dispatch.handshake import Identity
from cluster.errors import ConfigError, CorruptBlob, IncompleteLibrary
from cluster.fleet.control import View
from cluster.fleet.roles import supply
from cluster.fleet.roles.supply import Supply, open_library, peers_of
from cluster.library.reader import Library
from cluster.library.verify import verify
from cluster.types import ExpertId, NodeId
from support.blobs import blob_server, manifest_only, never
from support.engines import tiny_library

NAMES = tuple(map(NodeId, ("a", "b", "c", "d")))


def table(holders: tuple[tuple[int, ...], ...], nodes: tuple[NodeId, ...] = NAMES) -> PlacementTable:
    return PlacementTable(1, 1, nodes, (holders,))


def members(**changes: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        name: {"address": f"{name}:1", "alive": True, "blobs": f"{name}:2", "complete": False}
        | dict(changes.get(name, {}))
        for name in NAMES
    }


def test_holders_come_before_the_complete_and_the_hub_and_those_before_the_rest() -> None:
    view = View(table(((2,), (3,))), nodes=members(b={"complete": True}))
    assert peers_of(ExpertId(0, 0), view, "a", "hub:9") == ["c:2", "hub:9", "b:2", "d:2"]
    assert peers_of(ExpertId(0, 1), view, "a", "hub:9") == ["d:2", "b:2", "hub:9", "c:2"]
    assert peers_of(ExpertId(0, 0), view, "c") == ["b:2", "a:2", "d:2"]


def test_the_dead_and_the_silent_are_not_asked() -> None:
    view = View(table(((1, 2),)), nodes=members(b={"alive": False}, c={"blobs": ""}, d={"complete": True}))
    assert peers_of(ExpertId(0, 0), view, "a") == ["d:2"]


def test_who_is_not_in_the_next_table_is_asked_last() -> None:
    """It is lost, and may take its time to say nothing."""
    following = table(((0,),), NAMES[:1] + NAMES[2:])
    view = View(table(((1,),)), nodes=members(c={"complete": True}), next=following)
    assert peers_of(ExpertId(0, 0), view, "a") == ["c:2", "b:2", "d:2"]


def test_nobody_is_known_before_there_is_a_table() -> None:
    assert peers_of(ExpertId(0, 0), View(), "a") == []
    assert peers_of(ExpertId(0, 0), View(), "a", "hub:9") == ["hub:9"]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return tiny_library(tmp_path_factory.mktemp("models"), "qwen3-tied-gqa")


def made(library: Library, **options: Any) -> Supply:
    ticks = iter(range(1000))
    identity = Identity("node", "a", library=library.digest)
    return Supply(library, "", identity, NodeConfig(**options), clock=lambda: float(next(ticks)))


def test_patience_ends_and_names_the_expert(library: Library, tmp_path: Path) -> None:
    """Its clock goes on by a second whenever it looks, which is once a round."""
    partial, rounds = manifest_only(library, tmp_path / "partial"), []

    def peers(expert: ExpertId) -> list[str]:
        rounds.append(expert)
        return []

    one = made(partial)
    try:
        with pytest.raises(IncompleteLibrary, match="expert 2 of layer 1 is not on disk: nobody gives blob"):
            one.get([ExpertId(1, 2)], peers, 1.0, never)
        assert len(rounds) == supply.PATIENCE_S + 1
        assert one.stats()["missing"] == len(library.variant("").refs())
    finally:
        one.shutdown()


def test_what_is_there_is_not_asked_for(library: Library) -> None:
    one = made(library)
    try:
        one.get([ExpertId(0, 0)], lambda expert: pytest.fail("it asked"), 1.0, never)
        assert one.stats()["complete"]
    finally:
        one.shutdown()


def test_wrong_bytes_are_asked_for_anew_and_stay_until_others_come(library: Library, tmp_path: Path) -> None:
    """Nothing is deleted for which there is nothing better."""
    damaged, expert = Library.open(copytree(library.path, tmp_path / "damaged")), ExpertId(1, 2)
    file = damaged.blobs.file(damaged.expert_ref("", expert))
    file.write_bytes(bytes(file.stat().st_size))
    one = made(damaged)
    try:
        assert one.stats()["complete"]
        assert one.distrust([ExpertId(0, 0), expert]) == 1
        assert one.stats()["missing"] == 1
        with pytest.raises(CorruptBlob, match="expert 2 of layer 1 has wrong bytes on disk"):
            one.get([expert], lambda expert: [], 1.0, never)
        assert file.exists()
        with blob_server(library, key=b"") as hub:
            one.get([expert], lambda expert: [hub.address], 1.0, never)
        assert one.stats()["complete"]
        assert one.stats()["replaced"] == 1
        assert verify(damaged).problems == ()
    finally:
        one.shutdown()


def test_moves_are_judged_by_the_slower_way_to_an_expert(library: Library, tmp_path: Path) -> None:
    whole, partial = made(library), made(manifest_only(library, tmp_path / "partial"))
    try:
        for each, peers, disk, speed in (
            (whole, 5.0, 100.0, 100.0),
            (partial, 0.0, 100.0, 100.0),
            (partial, 5.0, 100.0, 5.0),
            (partial, 5.0, 0.0, 5.0),
        ):
            each._fetched.bytes, each._fetched.busy_s = int(2 * peers), 2.0
            assert each.load_speed(disk) == speed
    finally:
        whole.shutdown()
        partial.shutdown()


@pytest.mark.parametrize("share", [0.0, -1.0, 1.5])
def test_a_share_that_is_none(library: Library, share: float) -> None:
    with pytest.raises(ConfigError, match="fetch_share"):
        made(library, fetch_share=share)


def test_a_folder_without_a_library_needs_a_hub(library: Library, tmp_path: Path) -> None:
    identity = Identity("node", "a")
    assert open_library(str(library.path), identity, "", never).digest == library.digest
    with pytest.raises(Exception, match="is not a library"):
        open_library(str(tmp_path / "none"), identity, "", never)
