"""`moemesh fleet upgrade` of six hosts over real sshd, one after the other, while clients ask gateways."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import cluster
from cluster.cli.chaos_run import undisturbed
from cluster.experiments.chaos import history as h
from cluster.experiments.chaos.check import Wrong, check
from cluster.experiments.chaos.timeline import by_request, gaps_of
from cluster.library.bundled import open_model
from fleet.asking import asked
from fleet.hosts import ROOT, Host
from fleet.sshfleet import Fleet, fleet_over_ssh
from support.clusters import wait_until

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.fleet, pytest.mark.timeout(1200)]

HOSTS = {"a": "", "b": "", "c": "avx2", "d": "avx2", "e": "portable", "f": "portable"}
HUBS, ROLES = 2, 11
CLIENTS = 4
ENDS_S = 120.0
NEW = "99.1"
PACKAGE = ROOT / "cluster"
OF_CALLS = (Wrong.wrong_error, Wrong.wrong_count, Wrong.long_gap)
"""A call that breaks with its gateway is none of a request that fails: its client goes on with it."""


@pytest.fixture(scope="module")
def fleet(hosts_can_be_made: None) -> Iterator[Fleet]:
    """On every host the package is a copy of its own, at the same place."""
    gateway = {"insecure": True, "drain_s": 5.0}
    controller = {"rebalance": "manual", "min_replicas": 2}
    with fleet_over_ssh(HOSTS, HUBS, gateway=gateway, controller=controller) as made:
        for host in made.bed.hosts.values():
            own = host.spec.folder / "cluster"
            shutil.copytree(PACKAGE, own)
            host.run(["mount", "--bind", str(own), str(PACKAGE)])
        summary = made.moemesh("up", "--fleet", str(made.file))
        assert "error" not in summary, summary
        wait_until(lambda: settled(made), "two copies of every expert", 120.0)
        yield made
        made.moemesh("down", "--fleet", str(made.file))
        assert not made.left()


def settled(fleet: Fleet) -> bool:
    status = fleet.moemesh("status", "--fleet", str(fleet.file))
    if "error" in status:  # it had no time to answer
        return False
    table = status["table"]
    return table["active"] == table["version"] and not status["pending"] and status["replicated"] > 0


def status_of(fleet: Fleet) -> dict[str, Any]:
    found: dict[str, Any] = fleet.moemesh("status", "--fleet", str(fleet.file))
    assert "error" not in found, found
    return found


def members_of(status: dict[str, Any]) -> list[dict[str, Any]]:
    return [*status["nodes"], *status["routers"], *status["gateways"]]


def install(version: str) -> str:
    """A command that has another version be installed on a host: Python reads the file when it is asked."""
    file = PACKAGE / "__init__.py"
    return f"sed -i 's/^__version__ = .*/__version__ = \"{version}\"/' {file}"


def edit(host: Host, file: str, old: str, new: str) -> None:
    copy = host.spec.folder / "cluster" / file
    text = copy.read_text()
    assert old in text
    copy.write_text(text.replace(old, new))


@contextmanager
def clients(fleet: Fleet, file: Path) -> Iterator[None]:
    """They ask while the context lasts, and write down in `file` what they see."""
    gateways = {one["id"]: one["address"] for one in status_of(fleet)["gateways"]}
    spec = {"gateways": gateways, "clients": CLIENTS, "history": str(file)}
    script = Path(__file__).with_name("asking.py")
    client = fleet.operator.spawn([sys.executable, str(script), json.dumps(spec)], file.with_suffix(".err"))
    try:
        assert client.output.readline() == "asks\n", file.with_suffix(".err").read_text()
        wait_until(lambda: '"tokens"' in file.read_text(), "tokens", 60.0)
        yield
        client.input.close()
        assert client.wait(ENDS_S) == 0, file.with_suffix(".err").read_text()
    finally:
        client.close()


def check_history(file: Path) -> Sequence[h.Event]:
    """Every request came to its end, with the tokens and bits of one process."""
    events = h.from_lines(file.read_text().splitlines())
    answers = undisturbed(open_model(), asked())
    assert not [one for one in check(events, answers) if one.wrong not in OF_CALLS]
    assert any(isinstance(event, h.Ended) for event in events)
    return events


def summary_of(events: Sequence[h.Event]) -> str:
    requests = by_request(events)
    broken = [event for event in events if isinstance(event, h.Failed)]
    longest = max(end - begin for own in requests.values() for begin, end in gaps_of(own))
    codes = ", ".join(sorted({f"{event.code} {event.message}" for event in broken}))
    return (
        f"{len(requests)} requests, none failed, {len(broken)} calls were repeated ({codes}), "
        f"longest gap {longest:.1f} s"
    )


def software(fleet: Fleet) -> set[str]:
    status = status_of(fleet)
    members = members_of(status)
    assert len(members) == ROLES - 1
    return {status["software"], *(member["software"] for member in members)}


def test_numerics_that_differ_are_refused_before_anything_is_stopped(fleet: Fleet) -> None:
    before = status_of(fleet)
    numerics = "NUMERICS_VERSION = "
    edit(fleet.operator, "types.py", numerics, numerics + "1 + ")
    found = fleet.moemesh("fleet", "upgrade", str(fleet.file), "--install", install("77.0"))
    edit(fleet.operator, "types.py", numerics + "1 + ", numerics)
    fleet.operator.run(["sh", "-c", install(cluster.__version__)])
    said = found["error"]["message"]
    assert "host a: moemesh 77.0, which is installed, is not accepted by what runs" in said
    assert "numerics" in said
    after = status_of(fleet)
    incarnations = [[member["incarnation"] for member in members_of(one)] for one in (before, after)]
    assert incarnations[0] == incarnations[1]
    assert before["table"]["epoch"] == after["table"]["epoch"]


def test_every_host_is_upgraded_under_load_and_no_request_fails(fleet: Fleet) -> None:
    history = fleet.bed.folder / "history.jsonl"
    assert software(fleet) == {cluster.__version__}
    with clients(fleet, history):
        found = fleet.moemesh("fleet", "upgrade", str(fleet.file), "--install", install(NEW))
        assert "error" not in found, found
    assert found["version"] == NEW
    assert len(found["renewed"]) == ROLES
    said = summary_of(check_history(history))
    print(f"{len(HOSTS)} hosts upgraded within {found['seconds']:.0f} s: {said}")
    assert software(fleet) == {NEW}
    for node in status_of(fleet)["nodes"]:
        found = (node["id"], bool(node["experts"]), node["drained"], node["stats"]["restarts"])
        assert found == (node["id"], True, False, 0)


def test_a_second_run_has_nothing_to_do(fleet: Fleet) -> None:
    found = fleet.moemesh("fleet", "upgrade", str(fleet.file))
    assert found["renewed"] == []


def test_a_host_with_another_version_is_named_and_the_next_run_goes_on(fleet: Fleet) -> None:
    fleet.bed.hosts["c"].run(["sh", "-c", install("99.2")])
    said = fleet.moemesh("fleet", "upgrade", str(fleet.file))["error"]["message"]
    assert "host c has moemesh 99.2 installed, those before it run 99.1" in said
    assert "stopped at host c: a runs 99.1" in said
    found = fleet.moemesh("fleet", "upgrade", str(fleet.file), "--install", install(NEW))
    assert found["renewed"] == []
