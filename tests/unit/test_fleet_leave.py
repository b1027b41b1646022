"""A machine leaves its fleet while a command is at work there."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.errors import AlreadyUp
from cluster.fleet import processes
from cluster.fleet.file import FleetFile, load
from cluster.fleet.folder import Folder, Record
from cluster.fleet.join import leave
from cluster.fleet.processes import Mark

GONE = Mark(2**22 + 1, 1.0)
AT_WORK = """
import sys, time
from pathlib import Path
from cluster.fleet.folder import Folder

with Folder(Path(sys.argv[1])).locked():
    print("at work", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def fleet(tmp_path: Path) -> FleetFile:
    file = tmp_path / "fleet.yaml"
    host = {"name": "hub", "address": "127.0.0.1", "role": "hub", "memory_bytes": "1GiB", "cores": 1}
    file.write_text(yaml.safe_dump({"name": "yard", "ssh": {"user": "pi"}, "hosts": [host]}))
    return load(file)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "state")


@pytest.fixture
def worker(folder: Folder) -> Iterator[subprocess.Popen[str]]:
    """A command that has the folder for itself."""
    words = [sys.executable, "-c", AT_WORK, str(folder.path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "at work\n"
        yield process
        process.kill()


@pytest.fixture
def ray() -> Iterator[subprocess.Popen[bytes]]:
    """What the record of a machine that has joined names."""
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


def mark_of(process: subprocess.Popen[Any]) -> Mark:
    mark = processes.mark(process.pid)
    assert mark is not None
    return mark


def test_who_is_at_work_is_known_while_it_is(folder: Folder) -> None:
    assert folder.at_work() is None
    with folder.locked():
        assert folder.at_work() == processes.mark(os.getpid())
    assert folder.at_work() is None
    assert not folder.path.exists()


def test_who_was_killed_at_work_is_not_any_more(folder: Folder, worker: subprocess.Popen[str]) -> None:
    assert folder.at_work() == processes.mark(worker.pid)
    worker.kill()
    worker.wait()
    assert folder.at_work() is None
    with folder.locked():
        pass
    assert not folder.path.exists()


def test_a_step_of_an_upgrade_is_ended(
    fleet: FleetFile, folder: Folder, worker: subprocess.Popen[str], ray: subprocess.Popen[bytes]
) -> None:
    marks = mark_of(ray), mark_of(worker)
    folder.write(Record(phase="joined", owner=GONE, processes=marks[:1]))
    with pytest.raises(AlreadyUp), folder.locked():
        pass
    assert leave(fleet, fleet.head, folder)
    assert not any(processes.alive(mark) for mark in marks)
    assert not folder.path.exists()


def test_where_nothing_runs_it_is_ended_too(
    fleet: FleetFile, folder: Folder, worker: subprocess.Popen[str]
) -> None:
    mark = mark_of(worker)
    assert not leave(fleet, fleet.head, folder)
    assert not processes.alive(mark)
