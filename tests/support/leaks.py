"""What a test may leave behind: nothing. Threads, processes, listening ports and files are compared.

`Leftovers` is a snapshot of this process; `new_since` waits a little, because a thread that was told to
stop and a process that was sent a signal need a moment to go.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

SESSION_VARIABLE = "MOEMESH_TEST_SESSION"
"""In the environment of everything that a test session starts, so that detached processes are found too."""

# Threads that a library keeps for the life of the process once it was used; none of them holds a socket.
LIBRARY_THREADS = (
    "_poll_wrapper",  # grpc.aio's completion queue
    "tqdm_monitor",
)

# Ends with the interpreter that started it; multiprocessing has no way to end it sooner.
LIBRARY_PROCESSES = ("multiprocessing.resource_tracker",)


def threads() -> dict[str, str]:
    """Alive threads of this process, without those that libraries keep."""
    return {
        f"thread {t.ident}": t.name
        for t in threading.enumerate()
        if t.is_alive() and not _is_foreign(t) and not any(name in t.name for name in LIBRARY_THREADS)
    }


def _is_foreign(thread: threading.Thread) -> bool:
    """Made by a library's C code that once called into Python, as gRPC does at a handshake."""
    return isinstance(thread, threading._DummyThread)


def children() -> dict[str, str]:
    return _named(psutil.Process().children(recursive=True))


def listening(processes: Iterable[psutil.Process] | None = None) -> dict[str, str]:
    """TCP ports on which this process (or the given ones) listens."""
    found = {}
    for process in processes or [psutil.Process()]:
        try:
            for c in process.net_connections(kind="tcp"):
                if c.status == psutil.CONN_LISTEN:
                    found[f"port {c.laddr.port}"] = _describe(process)
        except psutil.Error:  # it ended while we looked
            continue
    return found


def tagged_processes(session: str) -> dict[str, str]:
    """Processes that this test session started, also those whose parent is gone."""
    own = {os.getpid(), *(p.pid for p in psutil.Process().parents())}
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid not in own and process.environ().get(SESSION_VARIABLE) == session:
                found.append(process)
        except psutil.Error:  # it ended while we looked, or is not ours to read
            continue
    return _named(found)


def files(folder: Path, expected: Iterable[str] = ()) -> dict[str, str]:
    """Entries of `folder` that are not expected."""
    return {f"file {p}": "" for p in sorted(folder.iterdir()) if p.name not in set(expected)}


@dataclass
class Leftovers:
    """A snapshot made of several views; each view maps a key to a description."""

    views: tuple[Callable[[], dict[str, str]], ...] = (threads, children, listening)
    before: set[str] = field(init=False)

    def __post_init__(self) -> None:
        self.before = set(self._now())

    def _now(self) -> dict[str, str]:
        return {key: text for view in self.views for key, text in view().items()}

    def new_since(self, grace_s: float = 5.0) -> list[str]:
        """What is there now and was not before, after waiting up to `grace_s` seconds for it to go."""
        deadline = time.monotonic() + grace_s
        while True:
            new = {key: text for key, text in self._now().items() if key not in self.before}
            if not new or time.monotonic() > deadline:
                return [f"{key} {text}".rstrip() for key, text in new.items()]
            time.sleep(0.02)


def _named(processes: Iterable[psutil.Process]) -> dict[str, str]:
    named = {f"process {p.pid}": _describe(p) for p in processes}
    return {key: text for key, text in named.items() if not any(name in text for name in LIBRARY_PROCESSES)}


def _describe(process: psutil.Process) -> str:
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return "zombie, nobody waited for it"
        return " ".join(process.cmdline())[:120]
    except psutil.Error:
        return "ending"
