"""On a host of a fleet, before anything is stopped: may what is installed take over, and what runs where.

Its kernels are compiled then: a role that had to compile them would be away for minutes.
"""

from __future__ import annotations

import time
from typing import Any

from cluster import __version__
from cluster.dispatch.frames import PROTOCOL
from cluster.errors import NotUp, ProtocolError, Unavailable
from cluster.fleet import raynode
from cluster.fleet.ask import Controller, patient_status
from cluster.fleet.file import FleetFile, Host
from cluster.fleet.folder import Folder, Record
from cluster.fleet.kernels import KernelWarmup
from cluster.fleet.machine import Progress
from cluster.fleet.ports import resolve
from cluster.fleet.signals import Signals
from cluster.fleet.versions import by_host, check_protocols, outdated
from cluster.fleet.wanted import Wanted, library_of, on_fleet, shape_of
from cluster.library.bundled import open_model

POLL_S = 0.1


def prepare(
    fleet: FleetFile, host: Host, folder: Folder, progress: Progress, signals: Signals
) -> dict[str, Any]:
    """Whether this host's installed version may take over here: {"version", "outdated": names of roles}. Its
    kernels are compiled then; nothing has been stopped.

    Where the controller is away, its own host has it to start: a version whose controller did not start can
    be replaced. Raises NotUp if the machine has not joined, ProtocolError if the fleet as it runs would not
    accept it, Unavailable.
    """
    joined(host, folder)
    try:
        status = _accepting(fleet, folder)
    except Unavailable:
        if not host.head:
            raise
        status = {"members": []}
    environment = raynode.environment(folder, fleet.wire_security, resolve(host.address))
    _compile(environment, folder, progress, signals)
    mine = [each for each in wanted_of(fleet, host) if each.host == host.name]
    return {"version": __version__, "outdated": [each.name for each in outdated(status, mine, __version__)]}


def _accepting(fleet: FleetFile, folder: Folder) -> dict[str, Any]:
    """The controller's status, if it and all members accept this version. Raises ProtocolError."""
    with Controller(controller_of(fleet), folder) as controller:
        try:
            status = patient_status(controller)  # the greeting checks protocol and numerics
            check_protocols(status, __version__, PROTOCOL)
        except ProtocolError as error:
            raise ProtocolError(
                f"moemesh {__version__}, which is installed, is not accepted by what runs: {error}. "
                "Nothing was stopped here; install one that is, or end the fleet (`moemesh down --fleet`), "
                "upgrade every host, and start it again"
            ) from None
    return status


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


def joined(host: Host, folder: Folder) -> Record:
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
