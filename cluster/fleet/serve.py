"""On a fleet's head: the roles of the whole fleet as actors on its machines, until every one is ready.

Repeatable: a role that runs already is left alone, so that machines which joined later get theirs.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from cluster.config import ClusterConfig, NodeConfig
from cluster.errors import NotUp, OutOfMemoryBudget, StartFailed
from cluster.fleet import gateways, generations, raynode
from cluster.fleet.file import FleetFile, Host
from cluster.fleet.folder import Folder, Record
from cluster.fleet.generations import Generations
from cluster.fleet.launch import this_process
from cluster.fleet.machine import Machine, Progress
from cluster.fleet.ports import resolve
from cluster.fleet.signals import Signals
from cluster.fleet.starting import Starting
from cluster.fleet.wanted import Plan, library_of, on_fleet, shape_of
from cluster.library.bundled import open_model

if TYPE_CHECKING:
    from cluster.library.reader import Library

JOINING_S = 1200.0
"""Machines that compile their kernels for the first time join after minutes."""

POLL_S = 0.2


def plan_of(fleet: FleetFile, library: Library) -> Plan:
    """The fleet as a cluster; what there is of one machine is the head's.

    Raises ClusterError, ConfigError, LibraryError, OutOfMemoryBudget for what cannot work.
    """
    from cluster.balance.policies import resolve as policy
    from cluster.gateway.service import check_access
    from cluster.tracing import check_tracing

    for host in fleet.hosts:
        for number in range(host.gateways):
            own = fleet.gateway_of(host, number)
            check_access(own)
    check_tracing(fleet.tracing)
    policy(fleet.engine.choice)
    variant = fleet.variant or library.manifest.default_variant
    shape = shape_of(library, variant, len(fleet.nodes))
    for host in fleet.nodes:
        if host.memory_bytes < shape.expert_bytes:
            raise OutOfMemoryBudget(
                f"memory_bytes of host {host.name} is {host.memory_bytes}, below one expert; "
                f"give at least {shape.expert_bytes}"
            )
    return Plan(_config(fleet), str(library.path.resolve()), library.name, variant, shape)


def _config(fleet: FleetFile) -> ClusterConfig:
    """As the record of a cluster on one machine has it."""
    first = next(host for host in fleet.hosts if host.gateways)
    return ClusterConfig(
        model=fleet.model,
        variant=fleet.variant,
        nodes=len(fleet.nodes),
        routers=sum(host.routers for host in fleet.hosts),
        gateways=sum(host.gateways for host in fleet.hosts),
        engine=fleet.engine,
        node=NodeConfig(),
        gateway=fleet.gateway_of(first),
        log_format=fleet.log_format,
        tracing=fleet.tracing,
        controller=fleet.controller,
        wire_security=fleet.wire_security,
    )


def serve(fleet: FleetFile, head: Host, folder: Folder, progress: Progress, signals: Signals) -> Record:
    """Start what is missing and return the head's record once the fleet serves.

    Machines that have not joined yet are waited for.

    Raises NotUp if this machine has not joined, ClusterError where it serves another model than the file
    names, StartFailed, or what a role reported: started roles stay, for `leave` on each machine to end.
    """
    with folder.locked():
        record = folder.read()
        if record is None or not record.alive() or record.phase == "starting":
            raise NotUp(f"host {head.name} has not joined; start the fleet with `moemesh up --fleet`")
        now = generations.served(fleet, head, folder)
        active = generations.unchanged(generations.asked_for(fleet, head), now)
        fleet = generations.of_generation(fleet, active)
        head, folder = fleet.head, Folder(folder.path, fleet.generation)
        plan = plan_of(fleet, open_model(library_of(fleet, head)))
        # Not before: a model that cannot be served could not be corrected.
        generations.write(folder, Generations(active))
        machine = Machine(folder, record, progress, signals)
        return _Serving(fleet, head, folder, machine, plan, progress, signals).run()


class _Serving:
    def __init__(
        self,
        fleet: FleetFile,
        head: Host,
        folder: Folder,
        machine: Machine,
        plan: Plan,
        progress: Progress,
        signals: Signals,
    ) -> None:
        self._fleet, self._head, self._folder, self._machine = fleet, head, folder, machine
        self._plan, self._progress, self._signals = plan, progress, signals

    def run(self) -> Record:
        fleet, head, machine, plan = self._fleet, self._head, self._machine, self._plan
        wanted = on_fleet(fleet, plan.shape, plan.variant)
        address = resolve(head.address)
        variables = raynode.environment(self._folder, fleet.wire_security, address)
        os.environ.update(raynode.driver_variables(variables))
        from cluster.fleet import actors  # Ray reads its environment when it is imported

        self._progress.phase("connecting to Ray")
        actors.connect(machine.record.ray, address, fleet.generation)
        try:
            self._signals.listen()
            machine.note(owner=this_process(), **noted(fleet, plan))
            hosts = [host.name for host in fleet.hosts]
            await_hosts(hosts, actors.hosts, self._progress, self._signals.check)
            starting = Starting(
                wanted, self._folder, self._progress, machine.watch, self._signals.check, head.name
            )
            starting.spawn()
            machine.note_processes()
            members = starting.wait_ready(machine.record.controller)
            machine.note(phase="up", **gateways.noted(members))
            return machine.record
        finally:
            actors.disconnect()


def noted(fleet: FleetFile, plan: Plan) -> dict[str, Any]:
    """What is served, as fields of the head's record."""
    return {
        "controller": f"{fleet.head.address}:{fleet.head.ports.controller}",
        "model": plan.model,
        "variant": plan.variant,
        "config": dataclasses.asdict(plan.config),
    }


def await_hosts(
    hosts: Iterable[str],
    joined: Callable[[], set[str]],
    progress: Progress,
    check: Callable[[], None],
    limit_s: float = JOINING_S,
) -> None:
    """Until all have joined. check: raises what ends the waiting. Raises StartFailed, naming who is missing,
    after limit_s."""
    deadline = time.monotonic() + limit_s
    while missing := ", ".join(host for host in hosts if host not in joined()):
        check()
        progress.phase(f"waiting for {missing} to join")
        if time.monotonic() > deadline:
            raise StartFailed(
                f"{missing} did not join within {limit_s:g} s; see state/logs in their storage, then call "
                "`moemesh up --fleet`"
            )
        time.sleep(POLL_S)
