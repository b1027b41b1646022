"""A machine joins: what starts in which order, and what it says of itself before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.errors import StartFailed
from cluster.fleet import generations, machine, ports
from cluster.fleet.file import FleetFile
from cluster.fleet.folder import Folder, Record
from cluster.fleet.generations import Generation, Generations
from cluster.fleet.join import join, probe
from cluster.fleet.machine import Quiet
from cluster.fleet.processes import Mark
from cluster.fleet.signals import Signals
from support.fleet_files import HUB, PI, fleet_of

GONE = Mark(2**22 + 1, 1.0)


class Started:
    """In place of what a machine starts, one of each kind. done: what was started, or made sure of."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.told = True
        self.mark, self.summary, self.total, self.environment = None, "", 0, dict[str, str]()
        self.temp = "there"

    def ray(self, folder: Folder, security: Any, place: Any = None) -> Started:
        return self

    def kernels(self, environment: Any, log: Path) -> Started:
        self.done.append("kernels")
        return self

    def obituary(self, environment: Any, head: str, name: str, log: Path) -> Started:
        self.done.append(f"{head} hears that {name} joins")
        return self

    def start(self) -> Mark:
        self.done.append("Ray")
        return GONE

    def address(self) -> str:
        return "10.0.0.1:1" if "Ray" in self.done else ""

    def finished(self) -> bool:
        if not self.told and self.done[-1] != "kernels":
            raise StartFailed("the head does not hear")
        return True

    def end(self) -> None:
        pass


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    made = Started()
    for name, method in (("RayNode", made.ray), ("KernelWarmup", made.kernels), ("Obituary", made.obituary)):
        monkeypatch.setattr(machine, name, method)
    monkeypatch.setattr(ports, "problem", lambda address, port: "")
    return made


@pytest.fixture
def fleet(tmp_path: Path) -> FleetFile:
    return fleet_of(tmp_path, HUB, PI)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    made = Folder(tmp_path / "state")
    made.put_secrets("token", b"key")
    return made


@pytest.mark.parametrize("before", [None, Record("joined", GONE, (GONE,))])
def test_the_head_hears_of_every_join_directly_before_its_ray_does(
    fleet: FleetFile, folder: Folder, started: Started, before: Record | None
) -> None:
    if before is not None:
        folder.write(before)
    join(fleet, fleet.hosts[1], folder, Quiet(), Signals())
    assert started.done == ["kernels", f"10.0.0.1:{fleet.head.ports.ray} hears that pi joins", "Ray"]


def test_a_machine_whose_end_the_head_does_not_hear_of_does_not_join(
    fleet: FleetFile, folder: Folder, started: Started
) -> None:
    started.told = False
    with pytest.raises(StartFailed, match="does not hear"):
        join(fleet, fleet.hosts[1], folder, Quiet(), Signals())
    assert "Ray" not in started.done
    assert folder.read() is None


def test_the_head_has_nobody_to_tell(fleet: FleetFile, folder: Folder, started: Started) -> None:
    folder.write(Record("up", GONE, (GONE,)))
    join(fleet, fleet.head, folder, Quiet(), Signals())
    assert started.done == ["Ray", "kernels"]


@pytest.mark.usefixtures("started")
def test_which_generation_is_active_is_part_of_what_a_host_says_of_itself(
    fleet: FleetFile, folder: Folder
) -> None:
    assert probe(fleet, fleet.head, folder)["generation"] == 0
    second = Generation(1, "", "int8", "second", "b" * 64)
    generations.write(folder, Generations(second))
    assert probe(fleet, fleet.head, folder)["generation"] == 1
