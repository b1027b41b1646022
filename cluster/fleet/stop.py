"""`down`: ask the roles to stop, end the processes that we started and no others, leave nothing."""

from __future__ import annotations

import logging
import time

from cluster.errors import ClusterError, MoemeshError, NotUp
from cluster.fleet import ports, raynode
from cluster.fleet.ask import Controller
from cluster.fleet.folder import Folder, Record

log = logging.getLogger(__name__)

POLITE_S = 3.0
"""Roles hear of it with their next sync, within a second; beyond that, a gateway lets its requests end."""

PORTS_S = 10.0
POLL_S = 0.05


def down(folder: Folder) -> None:
    """Raises NotUp if there is nothing (a record of a dead cluster is removed), ClusterError if a process or
    a port cannot be freed."""
    if folder.read() is None:
        raise NotUp("no cluster is up: there is nothing to stop")
    with folder.locked():
        record = folder.read()
        if record is None or not record.alive():
            if record is not None:
                clean(record, folder)
            raise NotUp("no cluster is up (removed what one that had crashed left): there is nothing to stop")
        _ask(record, folder)
        clean(record, folder)


def clean(record: Record, folder: Folder, keep_logs: bool = False, for_good: bool = True) -> None:
    """End every process of the record that is alive, with its descendants; remove its files. for_good: as in
    `Folder.forget`."""
    left = raynode.end(record.processes)
    if left:
        pids = ", ".join(str(one.pid) for one in left)
        raise ClusterError(f"processes {pids} do not end; end them by hand, then try again")
    listened = [address for one in record.entrances for address in (one.grpc, one.http)]
    taken = ports.wait_free((record.controller, *listened), PORTS_S)
    raynode.remove_files(record.temp)
    folder.forget(keep_logs, for_good)
    if taken:
        raise ClusterError(f"{', '.join(taken)} is in use still, though everything of ours has ended")


def _drain_s(record: Record) -> float:
    return float(record.config.get("gateway", {}).get("drain_s", 0.0))


def _ask(record: Record, folder: Folder) -> None:
    """Let streams end and servers close. What does not answer is ended all the same."""
    if not record.controller:
        return
    deadline = time.monotonic() + POLITE_S + _drain_s(record)
    try:
        with Controller(record.controller, folder) as controller:
            controller.shutdown()
            while controller.status()["members"] and time.monotonic() < deadline:
                time.sleep(POLL_S)
    except MoemeshError as error:
        log.info("the controller does not answer: %s", error)
