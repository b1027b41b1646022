"""`moemesh fleet upgrade --model` over real sshd: three hosts, two of them hubs, while clients ask both.
One host has no memory for two models."""

from __future__ import annotations

import json
import shutil
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.cli.bench_failover import reference
from cluster.experiments.live.failover import as_expected
from cluster.experiments.live.streams import Stream, sampled_requests
from cluster.library.bundled import open_model
from cluster.library.format import MANIFEST_NAME
from cluster.library.reader import Library
from fleet.hosts import Host
from fleet.libraries import NAME, another, damage_trunk
from fleet.sshfleet import Fleet, fleet_over_ssh
from support.clusters import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.fleet, pytest.mark.timeout(1200)]

HUBS, STREAMS, TOKENS = 2, 4, 40
ROLES = {"ControllerRole": 1, "NodeRole": 3, "RouterRole": HUBS, "GatewayRole": HUBS}
ENDS_S = 120.0
OLD, NEW, PART, DAMAGED = "old", "new", "part", "damaged"


@pytest.fixture(scope="module")
def fleet(hosts_can_be_made: None) -> Iterator[Fleet]:
    """On every host there are several libraries: not on c all of `part`, on b with wrong bytes `damaged`."""
    gateway = {"insecure": True, "drain_s": 60.0}
    with fleet_over_ssh(dict.fromkeys("abc", ""), HUBS, gateway=gateway, model=OLD) as made:
        whole = {OLD: open_model().path, NEW: another(made.bed.folder / NEW).path}
        for host in made.bed.hosts.values():
            storage = host.spec.folder / "storage"
            storage.mkdir()
            for name, folder in {**whole, PART: whole[NEW], DAMAGED: whole[NEW]}.items():
                (storage / name).symlink_to(folder)
        _replace(made, "c", PART).joinpath(MANIFEST_NAME).unlink()
        damage_trunk(_replace(made, "b", DAMAGED))
        summary = made.moemesh("up", "--fleet", str(made.file))
        assert "error" not in summary, summary
        short_of_memory(made.bed.hosts["c"])
        yield made
        made.moemesh("down", "--fleet", str(made.file))
        assert not made.left()


def short_of_memory(host: Host) -> None:
    """It has 200 MB free from now on: enough for another node only without the one that runs."""
    names = ("Buffers", "Cached", "SwapCached", "Active", "Inactive", "SwapTotal", "SwapFree", "Shmem")
    sizes = {"MemTotal": 400_000, "MemFree": 200_000, "MemAvailable": 200_000, **dict.fromkeys(names, 0)}
    file = host.spec.folder / "meminfo"
    file.write_text("".join(f"{name}: {size} kB\n" for name, size in sizes.items()))
    host.run(["mount", "--bind", str(file), "/proc/meminfo"])


def _replace(fleet: Fleet, host: str, name: str) -> Path:
    """Give a host a copy of its own of a library."""
    place = fleet.bed.hosts[host].spec.folder / "storage" / name
    source = place.resolve()
    place.unlink()
    return Path(shutil.copytree(source, place))


def name_model(fleet: Fleet, model: str) -> None:
    fleet.values["model"] = model
    fleet.write()


def change(fleet: Fleet, model: str) -> dict[str, Any]:
    name_model(fleet, model)
    found: dict[str, Any] = fleet.moemesh("fleet", "upgrade", str(fleet.file), "--model")
    return found


def status_of(fleet: Fleet) -> dict[str, Any]:
    found: dict[str, Any] = fleet.moemesh("status", "--fleet", str(fleet.file))
    assert "error" not in found, found
    return found


def roles(*hosts: Host) -> Counter[str]:
    """Processes of roles on these hosts, by class."""
    found: Counter[str] = Counter()
    for process in (one for host in hosts for one in host.processes()):
        with suppress(psutil.Error):
            line = process.cmdline()
            found[line[0].removeprefix("ray::") if line else ""] += 1
    return Counter({role: count for role, count in found.items() if role in ROLES})


@contextmanager
def one_node_at_a_time(host: Host) -> Iterator[None]:
    """And for a moment none."""
    seen, enough = set[int](), threading.Event()

    def look() -> None:
        while not enough.wait(0.2):
            seen.add(roles(host)["NodeRole"])

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        enough.set()
        thread.join()
    assert seen == {0, 1}


def only_one_generation_runs(fleet: Fleet) -> None:
    wait_until(lambda: roles(*fleet.bed.hosts.values()) == ROLES, f"{ROLES}, and no more", 20.0)
    wait_until(lambda: all(node["experts"] for node in status_of(fleet)["nodes"]), "experts everywhere", 60.0)
    assert status_of(fleet)["changing"] == ""
    state = fleet.operator.spec.folder / "storage" / "state"
    noted = json.loads((state / "generations").read_text())
    assert noted["other"] is None
    kept = {number: (folder / "epoch").exists() for number, folder in enumerate((state, state / "spare"))}
    assert [number for number, there in kept.items() if there] == [noted["active"]["number"]]


@contextmanager
def clients(fleet: Fleet, streams: list[Stream], many: int = STREAMS) -> Iterator[None]:
    """So many ask while the context lasts; their answers are in `streams` then."""
    gateways = ",".join(one["address"] for one in status_of(fleet)["gateways"])
    script, log = Path(__file__).with_name("resuming.py"), fleet.bed.folder / "clients.err"
    words = [sys.executable, str(script), gateways, str(open_model().path), str(many), str(TOKENS)]
    client = fleet.operator.spawn(words, log)
    try:
        assert client.output.readline() == "asks\n", log.read_text()
        yield
        client.input.close()
        streams += [Stream(**json.loads(line)) for line in client.output]
        assert client.wait(ENDS_S) == 0, log.read_text()
    finally:
        client.close()


class Judge:
    """Which of two models a stream's tokens are of."""

    def __init__(self, new: Library) -> None:
        old = open_model()
        requests = sampled_requests(old, STREAMS, TOKENS)
        self._expected = {one.name: reference(one, requests) for one in (old, new)}

    def models(self, streams: Sequence[Stream]) -> Counter[str]:
        """Answers that ended, by model. Every stream must be of one from its first token to its last."""
        assert not [one.error for one in streams if one.error]
        found: Counter[str] = Counter()
        for one in streams:
            fits = [
                name for name, expected in self._expected.items() if as_expected(one, expected[one.request])
            ]
            assert fits, f"request {one.request} has tokens of neither model, or of both: {one.tokens}"
            if one.ended:
                assert len(fits) == 1, "the two models give other tokens"
                found[fits[0]] += 1
        return found


@pytest.fixture(scope="module")
def judge(fleet: Fleet) -> Judge:
    return Judge(Library.open(fleet.bed.folder / NEW))


def all_are_asked(fleet: Fleet) -> bool:
    return all(one["stats"]["outstanding"] for one in status_of(fleet)["gateways"])


def longest_gap(streams: Sequence[Stream]) -> float:
    return max(b - a for one in streams for a, b in pairwise(one.times))


def test_a_library_that_is_not_there_or_damaged_is_refused_and_nobody_notices(
    fleet: Fleet, judge: Judge
) -> None:
    before = [(one["id"], one["incarnation"]) for one in status_of(fleet)["gateways"]]
    streams: list[Stream] = []
    with clients(fleet, streams, HUBS):
        said = change(fleet, PART)["error"]["message"]
        assert "host c" in said
        assert "is not a library" in said
        with one_node_at_a_time(fleet.bed.hosts["c"]):
            error = change(fleet, DAMAGED)["error"]
        assert error["code"] == "DATA_LOSS", error
        assert f"The fleet serves {open_model().name}" in error["message"]
    assert set(judge.models(streams)) == {open_model().name}
    print(f"meanwhile {len(streams)} streams, longest gap {longest_gap(streams):.1f} s")
    only_one_generation_runs(fleet)
    assert [(one["id"], one["incarnation"]) for one in status_of(fleet)["gateways"]] == before


def test_the_model_is_changed_under_load_and_every_answer_is_of_one(fleet: Fleet, judge: Judge) -> None:
    streams: list[Stream] = []
    with clients(fleet, streams), one_node_at_a_time(fleet.bed.hosts["c"]):
        found = change(fleet, NEW)
    assert (found.get("model"), found.get("changed")) == (NAME, True), found
    answers = judge.models(streams)
    print(
        f"changed within {found['seconds']:.0f} s: {answers.total()} answers, none failed, {dict(answers)}, "
        f"longest gap {longest_gap(streams):.1f} s"
    )
    assert all(answers[name] for name in (NAME, open_model().name)), answers
    only_one_generation_runs(fleet)
    after: list[Stream] = []
    with clients(fleet, after, HUBS):
        assert status_of(fleet)["model"] == NAME
        wait_until(lambda: all_are_asked(fleet), "streams at every gateway", 60)
    assert set(judge.models(after)) <= {NAME}


def test_the_fleet_is_one_like_any_other_afterwards(fleet: Fleet) -> None:
    assert change(fleet, NEW)["changed"] is False
    assert fleet.moemesh("fleet", "upgrade", str(fleet.file))["renewed"] == []
    name_model(fleet, OLD)
    for words in (("fleet", "upgrade", str(fleet.file)), ("up", "--fleet", str(fleet.file))):
        said = fleet.moemesh(*words)["error"]["message"]
        assert f"the fleet serves {NAME}" in said
        assert "fleet upgrade --model" in said
    name_model(fleet, NEW)
    assert "error" not in fleet.moemesh("up", "--fleet", str(fleet.file))
    only_one_generation_runs(fleet)


def test_it_changes_back(fleet: Fleet, judge: Judge) -> None:
    streams: list[Stream] = []
    with clients(fleet, streams, HUBS):
        found = change(fleet, OLD)
    assert found["changed"], found
    print(f"back within {found['seconds']:.0f} s: {dict(judge.models(streams))}")
    only_one_generation_runs(fleet)
