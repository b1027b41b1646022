"""On a host of a fleet: its roles started anew, one process after the other, with the code that is installed.

    node drained ─► its process ends ─► it starts ─► it is ready ─► experts are given back ─► the next one

Ray's daemons stay. A worker of Ray's imports our packages when an actor is made in it, so that a fresh actor
runs what is installed by then. The host is its own driver of Ray: what an actor is made with was packed by
the code that unpacks it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from cluster import __version__
from cluster.controller.members import Role
from cluster.dispatch.frames import PROTOCOL
from cluster.errors import MoemeshError, NotUp, OutOfMemoryBudget, ProtocolError, StartFailed, Unavailable
from cluster.fleet import raynode
from cluster.fleet.ask import Controller, moved
from cluster.fleet.file import FleetFile, Host
from cluster.fleet.folder import Folder, Record
from cluster.fleet.kernels import KernelWarmup
from cluster.fleet.machine import Machine, Progress, Quiet
from cluster.fleet.ports import resolve
from cluster.fleet.signals import Signals
from cluster.fleet.starting import Starting
from cluster.fleet.versions import by_host, check_protocols, check_ready, outdated
from cluster.fleet.wanted import CONTROLLER, Wanted, library_of, on_fleet, shape_of
from cluster.library.bundled import open_model

POLL_S = 0.1
AGAIN_S = 120.0
"""For so long a step is tried again that the controller cannot do yet: experts move, a member is away."""

MOVED_WITHIN_S = 600.0


def prepare(
    fleet: FleetFile, host: Host, folder: Folder, progress: Progress, signals: Signals
) -> dict[str, Any]:
    """Whether this host's installed version may take over here: {"version", "outdated": names of roles}. Its
    kernels are compiled then; nothing has been stopped.

    Raises NotUp if the machine has not joined, ProtocolError if the fleet as it runs would not accept it.
    """
    _joined(host, folder)
    status = _accepting(fleet, folder)
    environment = raynode.environment(folder, fleet.wire_security, resolve(host.address))
    _compile(environment, folder, progress, signals)
    mine = [each for each in wanted_of(fleet, host) if each.host == host.name]
    return {"version": __version__, "outdated": [each.name for each in outdated(status, mine, __version__)]}


def _accepting(fleet: FleetFile, folder: Folder) -> dict[str, Any]:
    """The controller's status, if it and all members accept this version. Raises ProtocolError."""
    with Controller(controller_of(fleet), folder) as controller:
        try:
            status = controller.status()  # the greeting checks protocol and numerics
            check_protocols(status, __version__, PROTOCOL)
        except ProtocolError as error:
            raise ProtocolError(
                f"moemesh {__version__}, which is installed, is not accepted by what runs: {error}. "
                "Nothing was stopped here; install one that is, or end the fleet (`moemesh down --fleet`), "
                "upgrade every host, and start it again"
            ) from None
    return status


def renew(
    fleet: FleetFile, host: Host, folder: Folder, progress: Progress, signals: Signals
) -> dict[str, Any]:
    """Start this host's outdated roles anew: {"version", "renewed": names}. Requests go on meanwhile.

    Raises Unavailable before anything is stopped if roles on other hosts are not ready; StartFailed, or what
    a role reported, if one does not come back.
    """
    record = _joined(host, folder)
    wanted = wanted_of(fleet, host)
    address = resolve(host.address)
    os.environ.update(raynode.driver_variables(raynode.environment(folder, fleet.wire_security, address)))
    from cluster.fleet import actors  # Ray reads its environment when it is imported

    with folder.locked():
        machine = Machine(folder, record, progress, signals)
        actors.connect(record.ray, address)
        try:
            signals.listen()
            where = controller_of(fleet)
            with Controller(where, folder) as controller:
                renewed = _Renewal(host, wanted, controller, where, machine, folder, progress, signals).run()
        finally:
            actors.disconnect()
    return {"version": __version__, "renewed": renewed}


def running(fleet: FleetFile, host: Host, folder: Folder) -> dict[str, list[str]]:
    """The versions that run on each host, "" for one that does not tell. Raises Unavailable."""
    with Controller(controller_of(fleet), folder) as controller:
        return by_host(controller.status(), wanted_of(fleet, host))


def wanted_of(fleet: FleetFile, host: Host) -> tuple[Wanted, ...]:
    """Every role of the fleet, as this host's library has it."""
    library = open_model(library_of(fleet, host))
    variant = fleet.variant or library.manifest.default_variant
    return on_fleet(fleet, shape_of(library, variant, len(fleet.nodes)), variant)


def controller_of(fleet: FleetFile) -> str:
    return f"{fleet.head.address}:{fleet.head.ports.controller}"


def _joined(host: Host, folder: Folder) -> Record:
    record = folder.read()
    if record is None or not record.alive() or record.phase == "starting":
        raise NotUp(f"host {host.name} has not joined; start the fleet with `moemesh up --fleet`")
    return record


def _compile(environment: dict[str, str], folder: Folder, progress: Progress, signals: Signals) -> None:
    warmup = KernelWarmup(environment, folder.logs / "kernels.log")
    try:
        while not warmup.finished():
            signals.check()
            progress.phase(f"kernels {warmup.done}/{warmup.total or '?'}")
            time.sleep(POLL_S)
    finally:
        warmup.end()


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

    def run(self) -> list[str]:
        status = self._controller.status()
        check_ready(status, [each for each in self._wanted if each.host != self._host.name])
        mine = [each for each in self._wanted if each.host == self._host.name]
        due = outdated(status, mine, __version__)
        for each in due:
            if each.role == Role.NODE:
                self._node(each)
            else:
                self._restart(each)
            limit_s = MOVED_WITHIN_S if each.role == Role.NODE else AGAIN_S
            self._until(self._calm, "the fleet to be as it was", limit_s)
            self._progress.done(self._machine.watch.timed(f"{each.name} runs {__version__}"))
        return [each.name for each in due]

    def _node(self, node: Wanted) -> None:
        """Its experts are on others meanwhile. A node that an operator has drained stays so."""
        member = _member(self._controller.status(), node.name)
        if member is None or member["drained"]:
            self._restart(node)
            return
        try:
            self._empty(node.name)
            self._restart(node)
        except BaseException:
            with suppress(MoemeshError):  # what has failed is reported
                self._controller.undrain(node.name)
            raise
        self._progress.phase(f"{node.name} gets experts")
        self._until(lambda: self._controller.undrain(node.name, fill=True), "moves to be possible")

    def _empty(self, node: str) -> None:
        """Where the others have no room for its experts, streams wait until those are loaded once more."""
        self._progress.phase(f"{node} is drained")
        try:
            self._until(lambda: self._controller.drain(node), "moves to be possible")
        except OutOfMemoryBudget as error:
            self._progress.done(f"{error}. It ends with its experts: streams wait until others have them")
            return
        self._until(lambda: self._emptied(node), f"{node} to be empty", MOVED_WITHIN_S)

    def _restart(self, each: Wanted) -> None:
        from cluster.fleet import actors

        member = _member(self._controller.status(), each.name)
        before = {} if member is None else {each.name: int(member["incarnation"])}
        self._progress.phase(f"{each.name} ends")
        actors.end(each.name)
        _count_anew(self._folder.logs, each.name)
        self._progress.phase(f"{each.name} starts")
        check, watch = self._signals.check, self._machine.watch
        starting = Starting([each], self._folder, Quiet(), watch, check, each.host, before)
        starting.spawn()
        if each.role != CONTROLLER:
            starting.wait_ready(self._address)
        self._machine.note_processes()

    def _emptied(self, node: str) -> bool:
        status = self._controller.status()
        member = _member(status, node)
        return moved(status) and (member is None or not member["stats"].get("held"))

    def _calm(self) -> bool:
        status = self._controller.status()
        check_ready(status, self._wanted)
        return moved(status)

    def _until(self, done: Callable[[], Any], what: str, limit_s: float = AGAIN_S) -> None:
        """Ask again while it says no, or is Unavailable. Raises StartFailed after `limit_s`, and other errors
        at once."""
        deadline = time.monotonic() + limit_s
        while True:
            self._signals.check()
            try:
                if done():
                    return
                said = "it is not so yet"
            except Unavailable as error:
                said = str(error)
            if time.monotonic() > deadline:
                raise StartFailed(f"waited {limit_s:g} s for {what}: {said}")
            time.sleep(POLL_S)


def _member(status: dict[str, Any], name: str) -> dict[str, Any] | None:
    return next((member for member in status["members"] if member["id"] == name), None)


def _count_anew(logs: Path, name: str) -> None:
    """A start that was asked for is no restart."""
    (logs / f"{name}.starts").unlink(missing_ok=True)
