"""Which generation of roles shall serve, with which ports and folders, in which order: nothing is started."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.config import EngineConfig
from cluster.controller.orders import Orders
from cluster.controller.state import Shape
from cluster.errors import (
    ClusterError,
    ConfigError,
    IncompleteLibrary,
    MoemeshError,
    OutOfMemoryBudget,
    ProtocolError,
)
from cluster.fleet import generations
from cluster.fleet.changeover import check_looked, parts
from cluster.fleet.file import FleetFile
from cluster.fleet.folder import Folder, Record
from cluster.fleet.generations import (
    Generation,
    Generations,
    Turn,
    of_generation,
    turn_to,
    unchanged,
)
from cluster.fleet.processes import Mark
from cluster.fleet.room import OVERHEAD_BYTES, fits_beside, needed_bytes
from cluster.fleet.wanted import on_fleet
from cluster.library.bundled import open_model
from support.fleet_files import DOOR, HUB, PI, fleet_of

SHAPE = Shape(3, 2, 4, (0, 1), 4096)
OLD = Generation(0, "old", "int8", "first", "a" * 64)
NEW = Generation(1, "new", "int8", "second", "b" * 64)
THIRD = Generation(0, "third", "int8", "third", "c" * 64)
GIB = 1 << 30


def doors(folder: Path, **more: Any) -> FleetFile:
    return fleet_of(folder, PI, HUB, {**DOOR, "gateways": 2}, **more)


@pytest.fixture
def fleet(tmp_path: Path) -> FleetFile:
    return doors(tmp_path)


def asked(of: Generation) -> Generation:
    """As a file names it, wherever the library lies and whichever generation it has."""
    return dataclasses.replace(of, number=0, model="elsewhere")


def test_nothing_is_to_do_where_the_fleet_serves_what_is_asked() -> None:
    assert turn_to(asked(NEW), Generations(NEW)) is None
    assert unchanged(asked(NEW), Generations(NEW)) == dataclasses.replace(NEW, model="elsewhere")


@pytest.mark.parametrize("active", [OLD, NEW])
def test_a_new_model_gets_the_number_that_is_free(active: Generation) -> None:
    turn = turn_to(THIRD, Generations(active))
    assert turn == Turn(dataclasses.replace(THIRD, number=1 - active.number), active, back=False)


def test_another_variant_of_the_same_library_is_another_model() -> None:
    turn = turn_to(dataclasses.replace(OLD, variant="int4"), Generations(OLD))
    assert turn is not None
    assert (turn.to.number, turn.to.variant, turn.to.digest) == (1, "int4", OLD.digest)


def test_in_the_middle_the_file_decides_which_of_the_two_shall_stay() -> None:
    middle = Generations(OLD, NEW)
    old, new = (dataclasses.replace(one, model="elsewhere") for one in (OLD, NEW))
    assert turn_to(asked(NEW), middle) == Turn(new, OLD, False)
    assert turn_to(asked(OLD), middle) == Turn(old, NEW, True)
    assert Turn(NEW, OLD, False).reverse == Turn(OLD, NEW, True)
    with pytest.raises(
        ClusterError, match=r"changes from first .* to second .*, and the fleet file names third"
    ):
        turn_to(THIRD, middle)


def test_an_upgrade_of_the_software_wants_the_model_to_stay() -> None:
    with pytest.raises(ClusterError, match=r"serves first .* names second .*fleet upgrade --model"):
        unchanged(NEW, Generations(OLD))
    with pytest.raises(ClusterError, match="the fleet changes its model"):
        unchanged(OLD, Generations(OLD, NEW))


def test_two_generations_share_no_port_folder_or_library_but_the_gateways_ports(
    fleet: FleetFile,
) -> None:
    first, second = (of_generation(fleet, one) for one in (OLD, NEW))
    places = []
    for one in (first, second):
        wanted = on_fleet(one, SHAPE, "int8")
        controller, *others = (each.arguments[0] for each in wanted)
        listening = {(place.host, place.port) for place in others if place.port} | {
            (controller.host, controller.port)
        }
        folders = {controller.epoch_file, controller.logs, *(place.logs for place in others)}
        libraries = {place.library for place in others}
        assert {place.controller for place in others} == {f"{controller.host}:{controller.port}"}
        places.append((listening, folders, libraries, [each.name for each in wanted]))
    for mine, theirs in zip(*(place[:3] for place in places), strict=True):
        assert mine
        assert not mine & theirs
    assert places[0][3] == places[1][3], "the same names, in a namespace of Ray's of their own"
    for host in fleet.hosts:
        assert first.gateway_of(host) == second.gateway_of(host)


@given(spare=st.integers(0, 400))
def test_a_host_has_the_same_ports_whichever_generation_is_meant(
    spare: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    try:
        fleet = doors(tmp_path_factory.mktemp("fleet"), ports={"spare": spare})
    except ConfigError:
        fleet = None
    if fleet is None:
        assert 0 < spare < 30, "only those nearby clash"
        return
    if not spare:
        with pytest.raises(ConfigError, match=r"ports\.spare of host pi is 0"):
            of_generation(fleet, NEW)
        return
    for before, after in zip(fleet.hosts, of_generation(fleet, NEW).hosts, strict=True):
        found = [sorted((use.first, use.count) for use in fleet.ports_of(host)) for host in (before, after)]
        assert found[0] == found[1]


def test_nobody_writes_a_generation_into_a_fleet_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no key 'generation'"):
        doors(tmp_path, generation=1)


def test_hosts_take_their_turns_and_the_old_ones_end_at_the_head_last(fleet: FleetFile) -> None:
    assert [(step, [host.name for host in hosts]) for step, hosts in parts(fleet)] == [
        ("nodes", ["hub", "pi"]),
        ("routers", ["hub", "door"]),
        ("gateways", ["hub", "door"]),
        ("commit", ["hub"]),
        ("strays", ["hub"]),
        ("end", ["pi", "door", "hub"]),
        ("finish", ["hub"]),
    ]


@pytest.mark.parametrize(
    ("pi", "error", "words"),
    [
        ({"digest": OLD.digest, "missing": 0}, ProtocolError, "host pi has another library at new"),
        ({"digest": NEW.digest, "missing": 4}, IncompleteLibrary, "hub lacks 2 blobs"),
        ({"digest": NEW.digest, "missing": 0}, None, ""),
    ],
)
def test_every_host_must_have_the_library_and_one_of_them_all_of_it(
    fleet: FleetFile, pi: dict[str, Any], error: type[MoemeshError] | None, words: str
) -> None:
    looked = {"hub": {"digest": NEW.digest, "missing": 2}, "pi": pi}
    if error is None:
        check_looked(fleet, NEW, looked)
        return
    with pytest.raises(error, match=words):
        check_looked(fleet, NEW, looked)


def test_memory_for_both_or_for_one_after_the_other_or_not_at_all(fleet: FleetFile) -> None:
    pi, hub, door = fleet.hosts
    engine = EngineConfig(kv_bytes=GIB)
    needed = needed_bytes(pi, engine, 1 << 20)
    assert needed == (1 << 20) + OVERHEAD_BYTES, "no more than there are experts"
    assert needed_bytes(pi, engine, GIB) == pi.memory_bytes + OVERHEAD_BYTES, "no more than its budget"
    assert needed_bytes(hub, engine, 1 << 20) == needed + GIB + OVERHEAD_BYTES
    assert needed_bytes(door, engine, 1 << 20) == GIB + OVERHEAD_BYTES, "it has no node"
    assert fits_beside("pi", needed, needed, 0)
    assert not fits_beside("pi", needed - 5, needed, 5)
    with pytest.raises(OutOfMemoryBudget, match=rf"pi has 7 bytes .* and 5 more .* needs {needed}"):
        fits_beside("pi", 7, needed, 5)


def test_what_is_noted_is_read_again_and_ends_with_the_fleet(fleet: FleetFile, tmp_path: Path) -> None:
    folder = Folder(tmp_path / "state")
    folder.put_secrets("token", b"key")
    assert generations.read(folder) is None
    for now in (Generations(OLD), Generations(NEW, OLD, Orders().to_text())):
        generations.write(folder, now)
        assert generations.read(folder) == now
    turn = Turn(NEW, OLD, True)
    assert Turn.from_wire(json.loads(json.dumps(turn.to_wire()))) == turn
    folder.forget(for_good=False)
    assert generations.read(folder) == Generations(NEW, OLD, Orders().to_text()), "the machine may join again"
    folder.put_secrets("token", b"key")
    assert generations.read(folder) is not None
    folder.put_secrets("of another fleet", b"key")
    assert generations.read(folder) is None
    folder.generations.write_text("{}")
    with pytest.raises(ClusterError, match="not readable"):
        generations.read(folder)
    second = Folder(folder.path, 1)
    second.epoch.parent.mkdir()
    second.epoch.write_text("3")
    second.orders.write_text("{}")
    second.clear_logs()
    folder.forget()
    assert not any(folder.path.iterdir())


def test_a_fleet_that_an_older_version_has_started_serves_what_its_record_says(tmp_path: Path) -> None:
    fleet = doors(tmp_path, model="not there any more")
    folder = Folder(tmp_path / "state")
    mark = Mark(1, 1.0)
    folder.write(Record("up", mark, (mark,), config={"model": "", "variant": ""}))
    bundled = open_model()
    found = generations.served(fleet, fleet.head, folder)
    assert found == Generations(Generation(0, "", "int8", bundled.name, bundled.digest))
    generations.write(folder, Generations(OLD, NEW))
    assert generations.served(fleet, fleet.head, folder) == Generations(OLD, NEW)
