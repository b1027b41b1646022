"""What a change of the model does on which host, and what it takes back: hosts that answer as told."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import AlreadyUp, LibraryError, StartFailed
from cluster.fleet import changeover
from cluster.fleet.changeover import change
from cluster.fleet.file import FleetFile, Host
from cluster.fleet.generations import Generation, Generations
from cluster.fleet.machine import Quiet, Stopwatch
from cluster.fleet.signals import Signals
from support.fleet_files import DOOR, HUB, PI, fleet_of

OLD = Generation(0, "old", "int8", "first", "a" * 64)
NEW = Generation(1, "new", "int8", "second", "b" * 64)
FORTH = [
    ("nodes", "hub", 1),
    ("nodes", "pi", 1),
    ("routers", "hub", 1),
    ("routers", "door", 1),
    ("gateways", "hub", 1),
    ("gateways", "door", 1),
    ("commit", "hub", 1),
    ("strays", "hub", 1),
    ("end", "pi", 1),
    ("end", "door", 1),
    ("end", "hub", 1),
    ("finish", "hub", 1),
]
BACK = [
    (step, host, 0)
    for step, host in (
        ("gateways", "hub"),
        ("gateways", "door"),
        ("nodes", "hub"),
        ("nodes", "pi"),
        ("routers", "hub"),
        ("routers", "door"),
        ("commit", "hub"),
        ("strays", "hub"),
        ("end", "pi"),
        ("end", "door"),
        ("end", "hub"),
        ("finish", "hub"),
    )
]
Done = tuple[str, str, int]


class Hosts:
    """In place of a Muster. done: steps, their hosts, and which generation shall be. failing: those of `done`
    that end with an error."""

    def __init__(
        self, asked: Generation, now: Generations, failing: Sequence[Done] = (), error: str = "StartFailed"
    ) -> None:
        self.watch, self.done = Stopwatch(), list[Done]()
        self._told = now.to_wire() | {"asked": vars(asked)}
        self._failing, self._error = failing, error

    def on(self, host: Host, job: Callable[[Any], Any]) -> Any:
        return job(_Shell(host, self))

    def everywhere(self, what: str, hosts: Iterable[Host], job: Callable[[Any], Any]) -> dict[str, Any]:
        return {host.name: self.on(host, job) for host in hosts}

    def answer(self, host: str, words: list[str]) -> Any:
        if words[2] != "turn":
            return {"answer": self._told if words[2] == "generations" else {"up": True}}
        given = dict(pairwise(words))
        done = (given["--step"], host, json.loads(given["--between"])["to"]["number"])
        self.done.append(done)
        if done in self._failing:
            return {"error": ["LibraryError" if done[0] == "look" else self._error, "no"]}
        return {"answer": {"digest": NEW.digest, "missing": 0}}


class _Shell:
    def __init__(self, host: Host, hosts: Hosts) -> None:
        self.host, self._hosts = host, hosts

    def run(self, command: str, hear: Callable[[str], None], given: str = "") -> None:
        words = shlex.split(command.rpartition("&& ")[2])
        hear(json.dumps(self._hosts.answer(self.host.name, words[1:])))


@pytest.fixture
def fleet(tmp_path: Path) -> FleetFile:
    return fleet_of(tmp_path, PI, HUB, DOOR)


@pytest.fixture
def changed(fleet: FleetFile, monkeypatch: pytest.MonkeyPatch) -> Callable[[Hosts], dict[str, Any]]:
    def run(hosts: Hosts) -> dict[str, Any]:
        monkeypatch.setattr(changeover, "Muster", lambda *arguments: hosts)
        return change(fleet, "the file", Quiet(), Signals())

    return run


def begun(hosts: Hosts) -> list[Done]:
    """What was done after all have been looked at."""
    looked = [done for done in hosts.done if done[0] == "look"]
    assert hosts.done[:4] == [*looked, ("begin", "hub", 1)]
    assert {host for _, host, _ in looked} == {"pi", "hub", "door"}
    return hosts.done[4:]


Change = Callable[[Hosts], dict[str, Any]]


def test_hosts_are_looked_at_and_then_take_their_turns(changed: Change) -> None:
    hosts = Hosts(NEW, Generations(OLD))
    assert changed(hosts) == {"model": "second", "variant": "int8", "changed": True}
    assert begun(hosts) == FORTH


def test_nothing_is_done_where_the_fleet_serves_what_is_asked(changed: Change) -> None:
    hosts = Hosts(OLD, Generations(OLD))
    assert changed(hosts)["changed"] is False
    assert not hosts.done


def test_nothing_is_begun_where_a_host_cannot(changed: Change) -> None:
    hosts = Hosts(NEW, Generations(OLD), [("look", "door", 1)])
    with pytest.raises(LibraryError, match="host door: no"):
        changed(hosts)
    assert {step for step, _, _ in hosts.done} == {"look"}


@pytest.mark.parametrize("many", range(1, 7))
def test_what_fails_before_the_last_gateway_has_changed_is_taken_back(changed: Change, many: int) -> None:
    hosts = Hosts(NEW, Generations(OLD), [FORTH[many]])
    with pytest.raises(StartFailed, match=r"serves first .* as before; what was started of second"):
        changed(hosts)
    assert begun(hosts) == [*FORTH[: many + 1], *BACK]


@pytest.mark.parametrize("many", range(7, 12))
def test_after_it_nothing_is(changed: Change, many: int) -> None:
    hosts = Hosts(NEW, Generations(OLD), [FORTH[many]])
    with pytest.raises(StartFailed, match=r"serves second .*; call it again to have the rest of first"):
        changed(hosts)
    assert begun(hosts) == FORTH[: many + 1]


def test_a_host_that_fails_on_the_way_back_does_not_keep_the_others(changed: Change) -> None:
    hosts = Hosts(NEW, Generations(OLD), [("nodes", "pi", 1), ("nodes", "pi", 0), ("end", "pi", 0)])
    with pytest.raises(StartFailed, match=r"serves first .*, but not all of second .* \(host pi: no\)"):
        changed(hosts)
    assert begun(hosts)[2:] == [done for done in BACK if done[0] in ("gateways", "nodes", "strays", "end")]


def test_what_a_gateway_still_needs_is_not_ended_on_the_way_back(changed: Change) -> None:
    hosts = Hosts(NEW, Generations(OLD), [("gateways", "door", 1), ("gateways", "hub", 0)])
    with pytest.raises(StartFailed, match=r"Not every gateway serves first .*stay \(host hub: no"):
        changed(hosts)
    assert begun(hosts) == [*FORTH[:6], *BACK[:2]]


def test_beside_a_step_of_a_run_that_was_cut_nothing_is_taken_back(changed: Change) -> None:
    hosts = Hosts(NEW, Generations(OLD, NEW), [("routers", "hub", 1)], "AlreadyUp")
    with pytest.raises(AlreadyUp, match="call it again then: it goes on where it is"):
        changed(hosts)
    assert hosts.done == FORTH[:3]


def test_one_that_was_cut_goes_on_or_back_as_the_file_says(changed: Change) -> None:
    middle = Generations(OLD, NEW)
    hosts = Hosts(NEW, middle)
    changed(hosts)
    assert hosts.done == FORTH
    hosts = Hosts(OLD, middle)
    changed(hosts)
    assert hosts.done == BACK
    hosts = Hosts(OLD, middle, [("end", "door", 0)])
    with pytest.raises(StartFailed, match="call it again to have the rest of second"):
        changed(hosts)
    hosts = Hosts(OLD, middle, [("routers", "door", 0)])
    with pytest.raises(StartFailed, match=r"Call it again: second .* has not ended everywhere"):
        changed(hosts)
    assert hosts.done == BACK[:6]
