"""The state folder: what is written is read back, what is broken or stale is refused by name."""

import dataclasses
import json
import os

import pytest

from cluster.errors import AlreadyUp, ClusterError, NotUp
from cluster.fleet import processes
from cluster.fleet.folder import Folder, Record
from cluster.fleet.processes import Mark
from cluster.fleet.roles.controller import next_epoch

GONE = Mark(2**22 + 1, 1.0)


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path / "state")


@pytest.fixture
def record():
    return Record(phase="up", owner=GONE, processes=(processes.mark(os.getpid()),), grpc="127.0.0.1:8471")


def test_a_record_is_read_back_as_it_was_written(folder, record):
    folder.write(record)
    assert folder.read() == record
    assert folder.require() == record


def test_a_gateway_on_another_machine_is_none_of_ours(record):
    known = {"controller": "10.0.0.1:8470", "grpc": "10.0.0.2:8471", "http": "10.0.0.2:8472"}
    assert dataclasses.replace(record, **known).own_addresses == tuple(known.values())
    assert dataclasses.replace(record, **known, address="10.0.0.1").own_addresses == ("10.0.0.1:8470",)


def test_nothing_written_is_no_record(folder):
    assert folder.read() is None
    with pytest.raises(NotUp, match="moemesh up"):
        folder.require()


def test_a_record_of_dead_processes_is_not_up(folder, record):
    folder.write(dataclasses.replace(record, processes=(GONE,)))
    with pytest.raises(NotUp):
        folder.require()


def test_a_cluster_that_is_being_started_is_not_up_yet(folder, record):
    folder.write(dataclasses.replace(record, phase="starting", owner=processes.mark(os.getpid())))
    with pytest.raises(NotUp, match="being started"):
        folder.require()


@pytest.mark.parametrize("text", ["{", "[]", "{}", json.dumps({"version": 99})])
def test_a_broken_record_is_refused_with_its_path(folder, record, text):
    folder.write(record)
    (folder.path / "state.json").write_text(text)
    with pytest.raises(ClusterError, match=r"state\.json"):
        folder.read()


def test_the_token_is_for_the_owner_alone_and_new_each_time(folder):
    folder.write_secrets()
    first = folder.token.read_text()
    assert folder.token.stat().st_mode & 0o777 == 0o600
    folder.write_secrets()
    assert folder.token.read_text() != first


def test_the_cluster_key_is_likewise(folder):
    assert folder.cluster_key() == b""
    folder.write_secrets()
    first = folder.cluster_key()
    assert len(first) == 32
    assert folder.key.stat().st_mode & 0o777 == 0o600
    folder.write_secrets()
    assert folder.cluster_key() != first


def test_two_cannot_work_on_one_folder(folder):
    with folder.locked(), pytest.raises(AlreadyUp, match="another"), folder.locked():
        pass
    with folder.locked():
        pass
    assert not folder.path.exists()


def test_forgetting_leaves_nothing_but_logs_if_asked(folder, record):
    folder.write(record)
    folder.write_secrets()
    folder.clear_logs()
    (folder.logs / "node-0.log").write_text("why")
    folder.forget(keep_logs=True)
    assert [file.name for file in folder.path.iterdir()] == ["logs"]
    folder.forget()
    assert list(folder.path.iterdir()) == []


def test_the_folder_comes_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("MOEMESH_STATE_DIR", str(tmp_path / "a"))
    assert Folder().path == tmp_path / "a"
    monkeypatch.delenv("MOEMESH_STATE_DIR")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "b"))
    assert Folder().path == tmp_path / "b" / "moemesh"


def test_epochs_grow(tmp_path):
    file = tmp_path / "epoch"
    assert [next_epoch(file) for _ in range(3)] == [1, 2, 3]
