"""What happens to hosts and their processes: frozen, slowed down, without a free byte, with another time.

A host that loses its power is `Host.kill`; links are `Bed.link`; another monotonic clock is `Wanted.clock_s`.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from fleet.hosts import DOWNLOADS, Host, Process
from support.debian import library_folders, unpacked_here

PERIOD_S = 0.1
CGROUP = Path("/sys/fs/cgroup")


@contextmanager
def frozen(host: Host) -> Iterator[None]:
    """No process of the host runs, as on one that hangs; its kernel still acknowledges packets."""
    stopped = host.processes()
    for each in stopped:
        each.suspend()
    try:
        yield
    finally:
        for each in stopped:
            with suppress(psutil.NoSuchProcess):
                each.resume()
        host.wake()


@contextmanager
def slowed(process: Process, share: float) -> Iterator[str]:
    """It gets at most `share` of one core, 0 to 1. Yields how: by a quota, or by stopping it for the rest of
    every period where cgroups cannot be written, which delays it even if it has little to do."""
    for folder, limit, value in _quotas(share):
        if os.access(folder, os.W_OK):
            with _quota(folder, limit, value, process):
                yield f"a quota in {folder}"
            return
    with _stopped_at_times(process, share):
        yield "stopped at times"


def _quotas(share: float) -> list[tuple[Path, str, str]]:
    """Folder, file and value of a cpu controller of cgroup v2 or v1, where there is one."""
    period = int(PERIOD_S * 1e6)
    quota = int(share * period)
    enabled = CGROUP / "cgroup.subtree_control"
    if enabled.exists():
        has_cpu = "cpu" in enabled.read_text().split()
        return [(CGROUP, "cpu.max", f"{quota} {period}")] if has_cpu else []
    return [(CGROUP / "cpu", "cpu.cfs_quota_us", str(quota))]


@contextmanager
def _quota(parent: Path, limit: str, value: str, process: Process) -> Iterator[None]:
    group = parent / f"moemesh-{process.pid}"
    group.mkdir()
    try:
        (group / limit).write_text(value)
        (group / "cgroup.procs").write_text(str(process.pid))
        yield
    finally:
        with suppress(ProcessLookupError):
            (parent / "cgroup.procs").write_text(str(process.pid))
        group.rmdir()


@contextmanager
def _stopped_at_times(process: Process, share: float) -> Iterator[None]:
    over = threading.Event()

    def alternate() -> None:
        while not over.wait(share * PERIOD_S):
            process.send(signal.SIGSTOP)
            over.wait((1 - share) * PERIOD_S)
            process.send(signal.SIGCONT)

    thread = threading.Thread(target=alternate, name="slows down", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def small_disk(host: Host, folder: Path, size: int) -> None:
    """Have `folder` be a disk of so many bytes on this host alone, until the host goes."""
    host.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)])


def fill(host: Host, folder: Path) -> None:
    """Leave no byte free on the disk of `folder`."""
    host.run(["dd", "if=/dev/zero", f"of={folder / 'filler'}", "bs=64k"], check=False)


def wall_clock(ahead_s: int) -> dict[str, str]:
    """Environment of processes whose wall clock is ahead by so much, by Debian's libfaketime, unpacked and
    not installed; their monotonic clock is as it was. Raises CannotRun."""
    root = unpacked_here(DOWNLOADS / "faketime", ["libfaketime"])
    library = library_folders(root)[0] / "faketime" / "libfaketime.so.1"
    return {"LD_PRELOAD": str(library), "FAKETIME": f"{ahead_s:+d}", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
