"""The wanted processes as actors: started all at once, watched until every one is ready."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cluster.controller.members import Health, Role
from cluster.errors import StartFailed, Unavailable, error_from_wire
from cluster.fleet import processes
from cluster.fleet.ask import Controller
from cluster.fleet.folder import Folder
from cluster.fleet.machine import Progress, Stopwatch
from cluster.fleet.processes import Mark
from cluster.fleet.raynode import last_line
from cluster.fleet.wanted import CONTROLLER, Wanted, count

ACTORS_S = 120.0
READY_S = 600.0
"""Loading a large library from a slow disk takes minutes."""

FAILING_S = 30.0
"""A gateway that gets no token from its ready routers for so long never will: what they load is loaded."""

POLL_S = 0.05


class Starting:
    """One attempt; this process is a driver of Ray.

    here: the host that it runs on, whose processes it can see; others are known by what they tell the
    controller. check: raises what ends the attempt, asked all the time. before: incarnations, by name, that
    have ended and that the controller may not know to be over yet.
    """

    def __init__(
        self,
        wanted: Sequence[Wanted],
        folder: Folder,
        progress: Progress,
        watch: Stopwatch,
        check: Callable[[], None],
        here: str = "",
        before: Mapping[str, int] | None = None,
    ) -> None:
        self._wanted, self._folder, self._progress, self._watch = wanted, folder, progress, watch
        self._check, self._here = check, here
        self._before = before or {}
        self._counts = count(wanted)
        self._host_of = {each.name: each.host for each in wanted}
        self._marks: dict[str, Mark] = {}
        self._running: set[str] = set()

    def spawn(self) -> None:
        """Returns when all processes run, though none may be ready yet. Raises StartFailed."""
        from cluster.fleet import actors

        self._progress.phase(f"starting {len(self._wanted)} processes")
        self._check()
        self._running = actors.running()
        started = {
            each.name: actors.spawn(each.role, each.name, *each.arguments, host=each.host)
            for each in self._wanted
        }
        deadline = time.monotonic() + ACTORS_S
        for number, (name, actor) in enumerate(started.items()):
            while (pid := actors.process_id(name, actor, timeout_s=0.5)) is None:
                self._look()
                self._progress.phase(f"starting processes, {number}/{len(started)} run")
                if time.monotonic() > deadline:
                    raise StartFailed(
                        f"{self._named(name)} did not start within {ACTORS_S:g} s; {self._see()}"
                    )
            self._know(name, pid)
        self._progress.done(self._watch.timed(f"{len(started)} processes"))

    def wait_ready(self, address: str) -> list[dict[str, Any]]:
        """Wait until every role is ready; returns the members as the controller at `address` knows them, in
        the order in which they are wanted.

        Raises StartFailed, or the error that a role has reported.
        """
        return self._wait(address, lambda member: bool(member["ready"]))

    def wait_joined(self, address: str) -> list[dict[str, Any]]:
        """As `wait_ready`, until each has opened its library and listens: nodes get no experts, and are not
        ready, before all of them are there."""
        return self._wait(address, lambda member: bool(member["address"]))

    def _wait(self, address: str, done: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
        deadline = time.monotonic() + READY_S
        with Controller(address, self._folder) as controller:
            while True:
                self._look()
                status = self._status(controller)
                members = [one for one in status["members"] if self._is_wanted(one)]
                self._check_members(members)
                said = describe(members, self._counts)
                if len(members) == self._members and all(map(done, members)):
                    break
                self._progress.phase(said)
                if time.monotonic() > deadline:
                    raise StartFailed(f"{said} after {READY_S:g} s; {self._see()}")
                time.sleep(POLL_S)
        self._progress.done(self._watch.timed(said))
        places = list(self._host_of)
        return sorted(members, key=lambda member: places.index(member["id"]))

    @property
    def _members(self) -> int:
        """The controller is no member of its own cluster."""
        return len(self._wanted) - self._counts[CONTROLLER]

    def _is_wanted(self, member: dict[str, Any]) -> bool:
        name = member["id"]
        return name in self._host_of and member["incarnation"] != self._before.get(name)

    def _know(self, name: str, pid: int) -> None:
        if self._host_of[name] == self._here:
            mark = processes.mark(pid)
            if mark is None:
                raise self._died(name, pid)
            self._marks[name] = mark

    def _status(self, controller: Controller) -> dict[str, Any]:
        try:
            return controller.status()
        except Unavailable:  # it listens soon, or `_look` finds it dead
            return {"members": []}

    def _look(self) -> None:
        for name, mark in self._marks.items():
            if not processes.alive(mark):
                raise self._died(name, mark.pid)
        self._check()

    def _check_members(self, members: list[dict[str, Any]]) -> None:
        for member in members:
            name = member["id"]
            if member["error"] is not None:
                error, message = member["error"]
                found = error_from_wire(error, message)
                raise type(found)(f"{self._named(name)}: {found}")
            # Ray was faster than our look at the process.
            if member["stats"].get("restarts") and name not in self._running:
                raise self._died(name, self._marks[name].pid if name in self._marks else 0)
            if member["health"] == Health.DEAD:
                raise StartFailed(f"{self._named(name)} is silent; is its machine up? {self._see()}")
            if error := lasting(member):
                raise StartFailed(f"{self._named(name)} gets no token: {error}; {self._see()}")

    def _died(self, name: str, pid: int) -> StartFailed:
        if self._host_of[name] != self._here:
            return StartFailed(f"{self._named(name)} died while starting; see its log there")
        log = self._folder.logs / f"{name}.log"
        return StartFailed(
            f"{name} (process {pid}) died while starting; last words: {last_line(log)!r}; see {log}"
        )

    def _named(self, name: str) -> str:
        host = self._host_of[name]
        return name if host in ("", name) else f"{name} on {host}"

    def _see(self) -> str:
        return f"see {self._folder.logs}"


def lasting(member: dict[str, Any]) -> str:
    """The error because of which a gateway will not get ready; "" while there is hope."""
    seconds, error = member["stats"].get("failing", (0.0, ""))
    return str(error) if not member["ready"] and seconds > FAILING_S else ""


def describe(members: Sequence[dict[str, Any]], wanted: dict[str, int]) -> str:
    """Where the roles are: how many nodes have loaded how much, routers, gateways.

    wanted: how many there shall be of each role.
    """
    of = {role: [one for one in members if one["role"] == role] for role in Role}
    ready = {role: sum(one["ready"] for one in found) for role, found in of.items()}
    stats = [one["stats"] for one in of[Role.NODE]]
    resident = sum(int(each.get("resident_bytes", 0)) for each in stats)
    budget = max((int(each.get("memory_bytes", 0)) for each in stats), default=0)
    weights = f"loaded {resident / 1e6:.1f} MB"
    if budget and not resident:
        weights = f"read experts as they are asked for, within {budget / 1e6:.1f} MB each"
    gateways = f"gateways {ready[Role.GATEWAY]}/{wanted[Role.GATEWAY]}"
    if wanted[Role.GATEWAY] == 1:
        gateways = f"gateway {'ready' if ready[Role.GATEWAY] else 'waiting'}"
    nodes = f"nodes {ready[Role.NODE]}/{wanted[Role.NODE]}"
    return f"{nodes} {weights}, routers {ready[Role.ROUTER]}/{wanted[Role.ROUTER]}, {gateways}"
