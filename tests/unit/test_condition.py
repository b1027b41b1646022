"""What `moemesh doctor` makes of a machine's memory, limits, clock, disk and ports."""

import os
import socket

import pytest

from cluster.fleet import condition, disk
from cluster.fleet.cgroups import autogrouped, cpu_limit, memory_limits
from cluster.fleet.clock import synchronised
from cluster.fleet.disk import DiskSpeed, disk_speed, existing
from cluster.fleet.folder import Folder

GIB = 1 << 30


def groups(tmp_path, own, files):
    """own: /proc/self/cgroup; files: text by path below /sys/fs/cgroup."""
    for name, text in files.items():
        file = tmp_path / "cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")
    (tmp_path / "own").write_text(f"{own}\n")
    return tmp_path / "cgroup", tmp_path / "own"


@pytest.mark.parametrize(
    ("own", "memory", "cpu"),
    [
        ("0::/a/b", {"a/memory.max": "5000", "a/memory.current": "1000"}, {"a/cpu.max": "150000 100000"}),
        (
            "4:memory:/a/b\n1:cpu,cpuacct:/a",
            {"memory/a/memory.limit_in_bytes": "5000", "memory/a/memory.usage_in_bytes": "1000"},
            {"cpu,cpuacct/a/cpu.cfs_quota_us": "150000", "cpu,cpuacct/a/cpu.cfs_period_us": "100000"},
        ),
    ],
    ids=["version 2", "version 1"],
)
def test_limits_of_control_groups_are_found_in_both_versions(tmp_path, own, memory, cpu):
    places = groups(tmp_path, own, memory | cpu)
    (limit,) = memory_limits(*places)
    assert (limit.bytes, limit.left) == (5000, 4000)
    assert cpu_limit(*places) == 1.5


@pytest.mark.parametrize(
    ("own", "files"),
    [
        ("0::/", {"memory.max": "max", "memory.current": "7", "cpu.max": "max 100000"}),
        (
            "4:memory:/\n1:cpu:/",
            {
                "memory/memory.limit_in_bytes": "9223372036854771712",
                "memory/memory.usage_in_bytes": "7",
                "cpu/cpu.cfs_quota_us": "-1",
                "cpu/cpu.cfs_period_us": "100000",
            },
        ),
    ],
    ids=["version 2", "version 1"],
)
def test_no_limit_is_none(tmp_path, own, files):
    places = groups(tmp_path, own, files)
    assert list(memory_limits(*places)) == []
    assert cpu_limit(*places) is None
    assert cpu_limit(tmp_path, tmp_path / "nothing") is None


def test_the_tightest_of_nested_groups_counts(tmp_path):
    files = {"a/cpu.max": "100000 100000", "a/b/cpu.max": "300000 100000"}
    assert cpu_limit(*groups(tmp_path, "0::/a/b", files)) == 1.0


def test_a_disk_is_measured_and_nothing_is_left(tmp_path):
    speed = disk_speed(tmp_path / "not" / "there")
    assert speed.folder == str(tmp_path)
    assert speed.write > 0
    assert speed.read > 0
    assert list(tmp_path.iterdir()) == []


def test_measuring_a_slow_disk_ends(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(disk.os, "fsync", written.append)
    now = iter(range(1000))
    speed = disk_speed(tmp_path, lambda: float(next(now)))
    assert len(written) == 1  # a second for each look at the clock
    assert speed.write == disk.CHUNK_BYTES


def test_a_folder_that_takes_nothing_is_wrong_and_has_a_fix(tmp_path, monkeypatch):
    def refuse(folder):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(condition, "disk_speed", refuse)
    found = condition.disk(tmp_path)
    assert found.good is False
    assert found.text == f"nothing can be written to {tmp_path}: Permission denied"
    assert "install -d" in found.fix


def test_a_slow_disk_is_wrong():
    assert condition.disk_finding(DiskSpeed("/mnt", 8e6, 30e6, GIB)).good
    slow = condition.disk_finding(DiskSpeed("/mnt", 2e6, 30e6, GIB))
    assert slow.good is False
    assert "5 and 20 MB/s" in slow.fix


def test_memory_and_what_limits_it():
    assert condition.memory(8 * GIB, 4 * GIB, None).text == "8 GiB, 4 GiB free"
    tight = condition.memory(8 * GIB, GIB // 4, GIB)
    assert tight.good is False
    assert tight.text == "8 GiB, 256 MiB free, limited to 1 GiB by its control group"


def test_less_time_than_cores_is_advice():
    assert condition.cpu_time(4, None).fix == condition.cpu_time(4, 4.0).fix == ""
    less = condition.cpu_time(4, 1.5)
    assert less.text == "1.5 of 4 cores, limited by its control group"
    assert less.fix.startswith("compute with 1 threads")
    assert less.good is None


@pytest.mark.parametrize(
    ("enabled", "own", "files", "expected"),
    [
        ("1", "1:cpu:/\n0::/", {}, True),
        ("0", "1:cpu:/\n0::/", {}, False),
        ("1", "1:cpu,cpuacct:/docker/a", {}, False),
        ("1", "0::/user.slice", {"user.slice/cpu.weight": "100"}, False),
        ("1", "0::/user.slice", {}, True),
    ],
)
def test_sessions_share_the_cores_where_no_control_group_does(tmp_path, enabled, own, files, expected):
    places = groups(tmp_path, own, files)
    (tmp_path / "enabled").write_text(f"{enabled}\n")
    assert autogrouped(tmp_path / "enabled", *places) is expected
    assert not autogrouped(tmp_path / "nowhere", *places)


def test_sessions_that_share_the_cores_are_advice():
    assert "processes" in condition.scheduler(False).text
    assert "sessions" in condition.scheduler(True).text


def test_larger_pages_are_advice():
    assert condition.page_size(4096).fix == ""
    assert "kernel8.img" in condition.page_size(16384).fix


def test_a_clock_that_nothing_keeps_is_advice():
    assert synchronised() in (True, False, None)
    assert condition.clock_kept(True).fix == condition.clock_kept(None).fix == ""
    assert "set-ntp" in condition.clock_kept(False).fix


def test_taken_ports_are_advice_unless_our_own_cluster_has_them(tmp_path):
    assert condition.ports_finding(False, [8471, 8472], []).text == "8471 and 8472 free"
    taken = condition.ports_finding(False, [8471, 8472], [8472])
    assert taken.text == "8472 taken"
    assert "--http" in taken.fix
    assert condition.ports_finding(True, [8471, 8472], []).fix == ""
    config = condition.GatewayConfig()
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((condition.LOOPBACK, config.port))
            sock.listen()
        except OSError:
            pass  # something else has it, which is as good
        assert config.port in condition.own_ports(Folder(tmp_path)).values["taken"]


def test_the_folder_that_would_be_made_is_looked_at_above(tmp_path):
    assert existing(tmp_path / "a" / "b") == tmp_path
    assert existing(tmp_path) == tmp_path


def test_all_of_it_has_a_name_of_its_own(tmp_path):
    found = condition.condition(Folder(tmp_path / "state"))
    assert [one.name for one in found] == [
        "memory",
        "page_size",
        "cpu_time",
        "scheduler",
        "clock",
        "disk",
        "ports",
    ]
    assert found[1].values == os.sysconf("SC_PAGE_SIZE")
