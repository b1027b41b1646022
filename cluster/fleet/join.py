"""`fleet join` and `fleet leave`: one machine of a fleet becomes part of its Ray, and ends it again.

Secrets, epoch and orders stay on the machine when a join in the foreground ends, so that it can join again at
boot; `leave` removes them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.errors import AlreadyUp, ClusterError, ConfigError, NotUp, PortInUse
from cluster.fleet import ports, processes, stop
from cluster.fleet.file import FleetFile, Host, PortUse
from cluster.fleet.folder import Folder, Record
from cluster.fleet.launch import this_process
from cluster.fleet.machine import Machine, Progress
from cluster.fleet.raynode import LABEL, RayPlace
from cluster.fleet.signals import Signals
from cluster.fleet.store import Store, forget, store_of
from cluster.fleet.wanted import state_of

JOINED = "joined"
NOTHING_KEPT = Store()
POLL_S = 0.2
OWNER_S = 15.0
"""How long a command that is at work here may take to end after SIGTERM."""

AT_WORK_S = 60.0
"""For so long `leave` ends who is at work here, one after the other, before it gives up."""

SSH_PORT = "ssh.port"
RAY_OPTIONS = (
    "node-manager-port",
    "object-manager-port",
    "runtime-env-agent-port",
    "dashboard-agent-listen-port",
    "dashboard-agent-grpc-port",
    "metrics-export-port",
)
"""In the order of a host's Ray ports, behind the head's."""


def own_record(fleet: FleetFile, name: str, is_ours: Callable[[str], bool] | None = None) -> Host:
    """The host of this name, or the one whose address is this machine's if the name is "".

    is_ours: whether an address is. Raises ConfigError, naming the hosts, if there is none or more than one.
    """
    ours = is_ours or (lambda address: not ports.problem(address, 0))
    if name:
        found = [host for host in fleet.hosts if host.name == name]
        if not found:
            names = ", ".join(host.name for host in fleet.hosts)
            raise ConfigError(f"the fleet has no host {name!r}; it has {names}")
        if not ours(found[0].address):
            raise ConfigError(f"address {found[0].address} of host {name} is not this machine's; correct it")
        return found[0]
    found = [host for host in fleet.hosts if ours(host.address)]
    if len(found) == 1:
        return found[0]
    which = ", ".join(f"{host.name} {host.address}" for host in found or fleet.hosts)
    what = "several hosts have addresses" if found else "no host of the fleet has an address"
    raise ConfigError(f"{what} of this machine ({which}); say which it is with --host NAME")


def ray_place(
    fleet: FleetFile,
    host: Host,
    resolve: Callable[[str], str],
    autoscaling: str = "",
    store: Store = NOTHING_KEPT,
) -> RayPlace:
    """What this host's Ray is told. resolve: the address in numbers of a name; Ray takes no other.
    autoscaling, store: of the head."""
    head = fleet.head
    numbers = {option: host.ports.ray + 1 + number for number, option in enumerate(RAY_OPTIONS)}
    workers = next(use for use in fleet.ports_of(host) if use.key == "ports.workers")
    numbers |= {"min-worker-port": workers.first, "max-worker-port": workers.last}
    return RayPlace(
        address=resolve(host.address),
        head="" if host.head else f"{resolve(head.address)}:{head.ports.ray}",
        port=host.ports.ray,
        ports=numbers,
        labels={**host.labels, LABEL: host.name},
        autoscaling=autoscaling,
        store=store,
    )


def check_ports(fleet: FleetFile, host: Host) -> None:
    """Raises PortInUse, naming host and key, if one of the ports of this machine is taken."""
    for use in fleet.ports_of(host):
        for port in _ports(use):
            if said := ports.problem(host.address, port):
                raise PortInUse(
                    f"port {port} on {host.address} of host {host.name} cannot be used ({said}); stop what "
                    f"uses it, or choose another for {use.key} in the fleet file"
                )


def _ports(use: PortUse) -> range:
    return range(use.first, use.last + 1) if use.key != SSH_PORT else range(0)


def join(
    fleet: FleetFile, host: Host, folder: Folder, progress: Progress, signals: Signals, autoscaling: str = ""
) -> Machine:
    """Start Ray here as the file says, and record it. The caller writes the secrets before.

    autoscaling: on the head, `ray up`'s configuration: Ray's monitor then joins the other machines.
    Raises ConfigError for it elsewhere, AlreadyUp, PortInUse, StartFailed, ClusterError without secrets;
    nothing is left then but them.
    """
    if autoscaling and not host.head:
        raise ConfigError(f"--autoscaling-config is for the head, {fleet.head.name}; leave it out here")
    with folder.locked():
        _clear_the_way(folder)
        if not folder.has_secrets():
            raise ClusterError(
                f"{folder.path} has no token and cluster.key; `moemesh up --fleet` puts them there, "
                f"--secrets takes those of `moemesh fleet render`, or copy those of {fleet.head.name}"
            )
        check_ports(fleet, host)
        store = store_of(fleet, folder) if host.head else NOTHING_KEPT
        folder.clear_logs()
        record = Record(phase="starting", owner=this_process(), address=host.address)
        machine = Machine(folder, record, progress, signals)
        try:
            machine.start(fleet.wire_security, ray_place(fleet, host, ports.resolve, autoscaling, store))
            machine.wait()
            machine.note(phase=JOINED)
            machine.note_processes()
        except BaseException:
            progress.phase("stopping what was started")
            machine.tear_down(lambda: stop.clean(machine.record, folder, keep_logs=True, for_good=False))
            raise
        return machine


def stay(machine: Machine, folder: Folder, signals: Signals) -> None:
    """Until a signal comes or Ray ends, then end it; secrets stay. Raises what `signals.check` does, and
    StartFailed if Ray has ended."""
    try:
        while True:
            signals.check()
            machine.check()
            time.sleep(POLL_S)
    finally:
        machine.tear_down(lambda: _forget(machine, folder))


def _forget(machine: Machine, folder: Folder) -> None:
    record = folder.read()
    if record is not None:  # else `leave` was faster
        stop.clean(record, folder, keep_logs=True, for_good=False)


def _clear_the_way(folder: Folder) -> None:
    """Remove what an earlier life of this machine has left, which ended without a word."""
    record = folder.read()
    if record is None:
        return
    if record.phase != "starting" and record.alive():
        raise AlreadyUp(f"this machine is part of a cluster already; {folder.path} has its record")
    stop.clean(record, folder, for_good=False)


def leave(fleet: FleetFile, host: Host, folder: Folder) -> bool:
    """End everything here, whatever state it is in, secrets included; returns whether anything was there.
    With the head goes what its Ray has kept: the fleet has ended.

    Raises ClusterError if a process or a port cannot be freed.
    """
    token = folder.token_text() if host.head else ""
    try:
        return _end(folder)
    finally:
        forget(fleet, token)


def _end(folder: Folder) -> bool:
    deadline = time.monotonic() + AT_WORK_S
    while True:
        _interrupt(folder)
        try:
            stop.down(folder)
            return True
        except NotUp:
            folder.forget(keep_logs=True)
            return False
        except AlreadyUp:  # the kernel has not let go of the lock, or an upgrade has begun its next step here
            if time.monotonic() > deadline:
                raise ClusterError(
                    f"command after command is at work in {folder.path}; end what gives them, and try again"
                ) from None
        time.sleep(POLL_S)


def _interrupt(folder: Folder) -> None:
    """End the commands of ours here: a join that starts or stays, a start of roles, a step of an upgrade."""
    record = folder.read()
    ours = {folder.at_work(), None if record is None else record.owner}
    processes.end([one for one in ours if one is not None and one != this_process()], OWNER_S)


def probe(fleet: FleetFile, host: Host, folder: Folder) -> dict[str, Any]:
    """What `up --fleet` must know of this machine before anything starts. Raises PortInUse.

    up: whether something of a cluster runs. kept: whether it is the head, and its Ray can go on with what it
    knew before it ended. generation: number of the active one, 0 on other hosts.
    """
    from cluster import __version__
    from cluster.fleet import generations
    from cluster.fleet.memory import free_memory
    from cluster.types import NUMERICS_VERSION

    record = folder.read()
    alive = record is not None and record.alive()
    if not alive:
        check_ports(fleet, host)
    noted = generations.read(folder)
    return {
        "version": __version__,
        "numerics": NUMERICS_VERSION,
        "free_bytes": free_memory(),
        "up": alive,
        "kept": host.head and folder.has_secrets() and (bool(fleet.redis.address) or folder.ray.exists()),
        "phase": record.phase if record is not None and alive else "",
        "generation": 0 if noted is None else noted.active.number,
    }


def fleet_at(path: Path, name: str, generation: int = 0) -> tuple[FleetFile, Host, Folder]:
    """The fleet, this machine's record in it, its state folder. generation: number of the one meant."""
    from cluster.fleet.file import load
    from cluster.fleet.generations import numbered

    fleet = numbered(load(path), generation)
    host = own_record(fleet, name)
    return fleet, host, Folder(Path(state_of(host)), fleet.generation)
