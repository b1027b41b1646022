"""Processes by pid *and* start time, so that a pid that was given to somebody else is never touched."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from contextlib import suppress
from typing import NamedTuple

import psutil

SAME_START_S = 2.0
"""Start times are derived from the boot time, which moves a little when the clock is set."""

KILL_S = 10.0
"""How long a killed process may take to go."""


class Mark(NamedTuple):
    """One process for good: the pid, and when it started (seconds since 1970)."""

    pid: int
    started: float


def mark(pid: int) -> Mark | None:
    """None if there is no such process (any more), or only its zombie."""
    process = _process(pid)
    return None if process is None else Mark(pid, process.create_time())


def alive(one: Mark) -> bool:
    now = mark(one.pid)
    return now is not None and abs(now.started - one.started) < SAME_START_S


def family(roots: Iterable[Mark]) -> list[Mark]:
    """The roots that are alive and everything below them, parents before children."""
    found: dict[int, Mark] = {}
    for root in roots:
        if not alive(root):
            continue
        found.setdefault(root.pid, root)
        with suppress(psutil.Error):
            for child in psutil.Process(root.pid).children(recursive=True):
                if (seen := mark(child.pid)) is not None:
                    found.setdefault(child.pid, seen)
    return list(found.values())


def session(leader: Mark) -> list[Mark]:
    """Everything in the session that `leader` opened, also after it has ended and its children are init's.

    The kernel does not give a number away while it names a session; if the leader's pid belongs to another
    process now, the session is over.
    """
    now = mark(leader.pid)
    if now is not None and not alive(leader):
        return []
    found = []
    for pid in psutil.pids():
        with suppress(OSError):  # it ended while we looked
            if (
                os.getsid(pid) == leader.pid
                and (seen := mark(pid))
                and seen.started > leader.started - SAME_START_S
            ):
                found.append(seen)
    return found


def end(marks: Iterable[Mark], grace_s: float) -> list[Mark]:
    """SIGTERM, `grace_s` seconds to comply, then SIGKILL. Returns what is alive still: nothing, normally."""
    return kill(_signal(marks, signal.SIGTERM, grace_s))


def kill(marks: Iterable[Mark]) -> list[Mark]:
    """SIGKILL. Returns what is alive still: nothing, unless the kernel holds it."""
    return _signal(marks, signal.SIGKILL, KILL_S)


def name(one: Mark) -> str:
    """Name of the executable, "" if the process is gone."""
    process = _process(one.pid)
    try:
        return process.name() if process is not None and alive(one) else ""
    except psutil.Error:
        return ""


def wait(marks: Iterable[Mark], timeout_s: float) -> list[Mark]:
    """Wait until all have ended; returns those that have not in time. Zombies of ours are reaped."""
    processes = [p for one in marks if alive(one) and (p := _process(one.pid)) is not None]
    _, left = psutil.wait_procs(processes, timeout=timeout_s)
    return [Mark(p.pid, p.create_time()) for p in left if p.is_running() and _process(p.pid) is not None]


def _signal(marks: Iterable[Mark], number: signal.Signals, timeout_s: float) -> list[Mark]:
    targets = [one for one in marks if alive(one)]
    for one in targets:
        with suppress(ProcessLookupError):
            os.kill(one.pid, number)
    return wait(targets, timeout_s)


def _process(pid: int) -> psutil.Process | None:
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process
    except psutil.Error:
        return None
