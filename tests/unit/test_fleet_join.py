"""A machine joins again after an end without a word, whether or not the head is there to hear of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.errors import StartFailed
from cluster.fleet import generations, obituary, ports
from cluster.fleet.file import FleetFile, Host, load
from cluster.fleet.folder import Folder, Record
from cluster.fleet.generations import Generation, Generations
from cluster.fleet.join import join, probe
from cluster.fleet.machine import Machine, Quiet
from cluster.fleet.processes import Mark
from cluster.fleet.signals import Signals

GONE = Mark(2**22 + 1, 1.0)


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FleetFile:
    """Ray does not start on its hosts, whose ports are free."""

    def refuse(machine: Machine, *arguments: Any) -> None:
        raise StartFailed("the head is not there yet")

    monkeypatch.setattr(Machine, "start", refuse)
    monkeypatch.setattr(ports, "problem", lambda address, port: "")
    entry = {"memory_bytes": "64MiB", "cores": 1, "storage": str(tmp_path)}
    hosts = [
        {**entry, "name": "hub", "address": "10.0.0.1", "role": "hub"},
        {**entry, "name": "pi", "address": "10.0.0.2", "role": "edge"},
    ]
    file = tmp_path / "fleet.yaml"
    file.write_text(yaml.safe_dump({"name": "f", "hosts": hosts, "gateway": {"insecure": True}}))
    return load(file)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    made = Folder(tmp_path / "state")
    made.put_secrets("token", b"key")
    return made


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What Ray at the head was told. The first call does not reach it."""
    calls: list[tuple[str, str]] = []

    def report(environment: Any, head: str, name: str) -> bool:
        calls.append((head, name))
        return len(calls) > 1

    monkeypatch.setattr(obituary, "report", report)
    return calls


def try_to_join(fleet: FleetFile, host: Host, folder: Folder) -> None:
    with pytest.raises(StartFailed, match="not there yet"):
        join(fleet, host, folder, Quiet(), Signals())


def test_an_end_without_a_word_is_told_until_the_head_has_heard_of_it(
    fleet: FleetFile, folder: Folder, told: list[tuple[str, str]]
) -> None:
    pi = fleet.hosts[1]
    try_to_join(fleet, pi, folder)
    assert not told, "it has not been part of the fleet yet"
    folder.write(Record("joined", GONE, (GONE,)))
    for _ in range(3):
        try_to_join(fleet, pi, folder)
    assert told == [(f"10.0.0.1:{fleet.head.ports.ray}", "pi")] * 2


def test_the_head_has_nobody_to_tell(fleet: FleetFile, folder: Folder, told: list[tuple[str, str]]) -> None:
    folder.write(Record("up", GONE, (GONE,)))
    try_to_join(fleet, fleet.head, folder)
    assert not told


def test_a_machine_that_leaves_for_good_keeps_nothing_to_tell(folder: Folder) -> None:
    folder.ended.touch()
    folder.forget()
    assert not folder.path.exists() or not any(folder.path.iterdir())


def test_which_generation_is_active_is_part_of_what_a_host_says_of_itself(
    fleet: FleetFile, folder: Folder
) -> None:
    assert probe(fleet, fleet.head, folder)["generation"] == 0
    second = Generation(1, "", "int8", "second", "b" * 64)
    generations.write(folder, Generations(second))
    assert probe(fleet, fleet.head, folder)["generation"] == 1
