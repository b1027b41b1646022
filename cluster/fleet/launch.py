"""`up` on one machine: start everything, wait until it serves, or leave nothing behind.

kernels (own process) ─┐
Ray head ──────────────┴─► driver ─► all actors at once ─► every role ready ─► recorded as up
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from cluster.errors import AlreadyUp, MoemeshError
from cluster.fleet import gateways, ports, processes, stop
from cluster.fleet.folder import Folder, Record
from cluster.fleet.machine import Machine, Progress
from cluster.fleet.raynode import HOST
from cluster.fleet.signals import Signals
from cluster.fleet.starting import Starting
from cluster.fleet.wanted import Plan, on_one_machine


def launch(plan: Plan, folder: Folder, progress: Progress, signals: Signals) -> Record:
    """Start the cluster and return its record once it serves.

    signals: its context is open; a signal that it notes ends the start within a second or two.

    Raises AlreadyUp, ConfigError, PortInUse, StartFailed, or the error that a role reported. After any
    exception, KeyboardInterrupt included, no process, port or file of it is left; only the logs are, after a
    failure.
    """
    with folder.locked():
        clear_the_way(folder, progress)
        gateways.check_ports(plan.config.gateway, plan.config.gateways)
        config = dataclasses.asdict(plan.config)
        record = Record(
            phase="starting", owner=this_process(), model=plan.model, variant=plan.variant, config=config
        )
        start = _Start(plan, folder, Machine(folder, record, progress, signals), progress, signals)
        try:
            return start.run()
        except BaseException as error:
            progress.phase("stopping what was started")
            start.tear_down(keep_logs=isinstance(error, MoemeshError))
            raise


def this_process() -> processes.Mark:
    found = processes.mark(os.getpid())
    assert found is not None, "this process runs"
    return found


def clear_the_way(folder: Folder, progress: Progress) -> None:
    """Remove what a dead cluster left. Raises AlreadyUp if it lives."""
    record = folder.read()
    if record is None:
        return
    if record.phase == "up" and record.alive():
        raise AlreadyUp(f"a cluster is up already at {record.grpc}; stop it first with `moemesh down`")
    progress.done("cleaned up after a cluster that had ended without `moemesh down`")
    stop.clean(record, folder)


class _Start:
    """One attempt. `run` may fail anywhere; `tear_down` then ends what there is."""

    def __init__(
        self, plan: Plan, folder: Folder, machine: Machine, progress: Progress, signals: Signals
    ) -> None:
        self._plan, self._folder, self._machine = plan, folder, machine
        self._progress, self._signals = progress, signals
        self._connected = False

    def run(self) -> Record:
        machine = self._machine
        self._folder.clear_logs()
        self._folder.write_secrets()
        machine.start(self._plan.config.wire_security)
        _actors()
        address = machine.wait()
        self._progress.phase("connecting to Ray")
        self._connected = True
        _actors().connect(address)
        self._signals.listen()
        port = ports.free_port(HOST)
        machine.note(controller=f"{HOST}:{port}")
        wanted = on_one_machine(self._plan, HOST, port, str(self._folder.logs), str(self._folder.epoch))
        starting = Starting(wanted, self._folder, self._progress, machine.watch, self._check)
        starting.spawn()
        machine.note_processes()
        members = starting.wait_ready(machine.record.controller)
        machine.note(phase="up", **gateways.noted(members))
        machine.note_processes()
        _actors().disconnect()
        return machine.record

    def tear_down(self, keep_logs: bool) -> None:
        try:
            if self._connected:
                _actors().disconnect()
        finally:
            self._machine.tear_down(lambda: self._machine.clean(keep_logs))

    def _check(self) -> None:
        self._signals.check()
        self._machine.check()


def _actors() -> Any:
    """Ray, imported when first needed: it takes half a second, and reads its environment then."""
    from cluster.fleet import actors

    return actors
