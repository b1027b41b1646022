"""On a host of a fleet: its roles started anew, one process after the other, with the code that is installed.

    node drained ─► its process ends ─► it starts ─► it is ready ─► experts are given back ─► the next one

Ray's daemons stay. A worker of Ray's imports our packages when an actor is made in it, so that a fresh actor
runs what is installed by then. The host is its own driver of Ray: what an actor is made with was packed by
the code that unpacks it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster import __version__
from cluster.controller.members import Role
from cluster.errors import Unavailable
from cluster.fleet import raynode
from cluster.fleet.ask import Controller, moved, patient_status
from cluster.fleet.file import FleetFile, Host
from cluster.fleet.folder import Folder
from cluster.fleet.machine import Machine, Progress, Quiet
from cluster.fleet.ports import resolve
from cluster.fleet.prepare import controller_of, joined, wanted_of
from cluster.fleet.settling import AGAIN_S, MOVED_WITHIN_S, Settling
from cluster.fleet.signals import Signals
from cluster.fleet.starting import Starting
from cluster.fleet.versions import check_ready, outdated
from cluster.fleet.wanted import CONTROLLER, Wanted


def renew(
    fleet: FleetFile, host: Host, folder: Folder, progress: Progress, signals: Signals
) -> dict[str, Any]:
    """Start this host's outdated roles anew: {"version", "renewed": names}. Requests go on meanwhile.

    Raises Unavailable before anything is stopped if roles on other hosts are not ready; StartFailed, or what
    a role reported, if one does not come back.
    """
    wanted = wanted_of(fleet, host)
    address = resolve(host.address)
    os.environ.update(raynode.driver_variables(raynode.environment(folder, fleet.wire_security, address)))
    from cluster.fleet import actors  # Ray reads its environment when it is imported

    with folder.locked():
        record = joined(host, folder)
        machine = Machine(folder, record, progress, signals)
        actors.connect(record.ray, address, folder.generation)
        try:
            signals.listen()
            where = controller_of(fleet)
            with Controller(where, folder) as controller:
                renewed = _Renewal(host, wanted, controller, where, machine, folder, progress, signals).run()
        finally:
            actors.disconnect()
    return {"version": __version__, "renewed": renewed}


class _Renewal:
    """Of one host; this process is a driver of Ray."""

    def __init__(
        self,
        host: Host,
        wanted: Sequence[Wanted],
        controller: Controller,
        address: str,
        machine: Machine,
        folder: Folder,
        progress: Progress,
        signals: Signals,
    ) -> None:
        self._host, self._wanted, self._controller, self._address = host, wanted, controller, address
        self._machine, self._folder, self._progress, self._signals = machine, folder, progress, signals
        self._settling = Settling(controller, progress, signals)
        self._until = self._settling.until

    def run(self) -> list[str]:
        mine = [each for each in self._wanted if each.host == self._host.name]
        lost = [each for each in mine if each.role == CONTROLLER and self._is_away()]
        for each in lost:
            self._restart(each)
            self._until(lambda: self._controller.status()["active"], "nodes to come back")
        status = patient_status(self._controller)
        check_ready(status, [each for each in self._wanted if each.host != self._host.name])
        due = outdated(status, mine, __version__)
        for each in due:
            self._take_turn(each)
        return [each.name for each in (*lost, *due)]

    def _is_away(self) -> bool:
        try:
            patient_status(self._controller)
        except Unavailable:
            return True
        return False

    def _take_turn(self, each: Wanted) -> None:
        """Returns when all are ready again, with as many copies as before."""
        if each.role == Role.NODE:
            self._node(each)
        else:
            self._restart(each)
        limit_s = MOVED_WITHIN_S if each.role == Role.NODE else AGAIN_S
        self._until(self._calm, "the fleet to be as it was", limit_s)
        self._progress.done(self._machine.watch.timed(f"{each.name} runs {__version__}"))

    def _node(self, node: Wanted) -> None:
        """Its experts are on others meanwhile. A node that an operator has drained stays so."""
        member = self._settling.member(node.name)
        if member is None or (member["drained"] and not member.get("for_upgrade")):
            self._restart(node)
            return
        try:
            self._settling.drain_if_possible(node.name)
            self._restart(node)
        except BaseException:
            self._settling.take_back(node.name)
            raise
        self._settling.give_back(node.name)

    def _restart(self, each: Wanted) -> None:
        from cluster.fleet import actors

        before = {} if each.role == CONTROLLER else self._incarnation(each.name)
        self._progress.phase(f"{each.name} ends")
        actors.end(each.name, self._folder.generation)
        count_anew(self._folder.logs, each.name)
        self._progress.phase(f"{each.name} starts")
        check, watch = self._signals.check, self._machine.watch
        starting = Starting([each], self._folder, Quiet(), watch, check, each.host, before)
        starting.spawn()
        if each.role != CONTROLLER:
            starting.wait_ready(self._address)
        self._machine.note_processes()

    def _incarnation(self, name: str) -> dict[str, int]:
        member = self._settling.member(name)
        return {} if member is None else {name: int(member["incarnation"])}

    def _calm(self) -> bool:
        status = self._controller.status()
        check_ready(status, self._wanted)
        return moved(status)


def count_anew(logs: Path, name: str) -> None:
    """A start that was asked for is no restart."""
    (logs / f"{name}.starts").unlink(missing_ok=True)
