"""What Linux's control groups allow this process, in versions 1 and 2.

A limit of any group above ours counts: a container's, a systemd slice's. /proc/self/cgroup names our group
of each controller; where a container sees its own group as the root, that path leads nowhere and the root is
looked at alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

AUTOGROUPS = Path("/proc/sys/kernel/sched_autogroup_enabled")
CGROUPS = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")

MEMORY_FILES = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))
UNLIMITED_BYTES = 1 << 60
"""Version 1 writes the largest multiple of a page where there is no limit."""


@dataclass(frozen=True)
class MemoryLimit:
    """Bytes that one group may use and uses."""

    bytes: int
    used: int

    @property
    def left(self) -> int:
        return max(self.bytes - self.used, 0)


def memory_limits(cgroups: Path = CGROUPS, own: Path = OWN) -> Iterator[MemoryLimit]:
    """Of every group above us that has one."""
    for folder in _groups("memory", cgroups, own):
        for limit, used in MEMORY_FILES:
            with suppress(OSError, ValueError):  # not of this version, or "max"
                found = MemoryLimit(int(_read(folder / limit)), int(_read(folder / used)))
                if found.bytes < UNLIMITED_BYTES:
                    yield found


def cpu_limit(cgroups: Path = CGROUPS, own: Path = OWN) -> float | None:
    """CPUs' worth of time that the groups above us may use; None where nothing limits it."""
    return min(_cpu_limits(cgroups, own), default=None)


def autogrouped(enabled: Path = AUTOGROUPS, cgroups: Path = CGROUPS, own: Path = OWN) -> bool:
    """Whether Linux shares the cores between sessions, each with as much as another, whatever is nice in it
    (sched(7), autogroups): where that is on, and no control group shares them."""
    try:
        return _read(enabled) == "1" and not any(_shared_by(cgroups, own))
    except OSError:
        return False


def _shared_by(cgroups: Path, own: Path) -> Iterator[bool]:
    """Of each hierarchy, whether our group in it is one that gets a share of the cores."""
    for line in own.read_text().splitlines():
        _, names, path = line.split(":", 2)
        if "cpu" in names.split(","):
            yield path != "/"
        elif not names:  # version 2, whose root has no weight
            yield (cgroups / path.strip("/") / "cpu.weight").exists()


def _cpu_limits(cgroups: Path, own: Path) -> Iterator[float]:
    for folder in _groups("cpu", cgroups, own):
        with suppress(OSError, ValueError):  # not version 2, or "max"
            quota, period = map(int, _read(folder / "cpu.max").split())
            yield quota / period
        with suppress(OSError, ValueError):
            quota = int(_read(folder / "cpu.cfs_quota_us"))
            if quota > 0:  # -1: unlimited
                yield quota / int(_read(folder / "cpu.cfs_period_us"))


def _groups(controller: str, cgroups: Path, own: Path) -> Iterator[Path]:
    """Folders of our group and of those above it, of version 2 and of version 1's `controller`."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, names, path = line.split(":", 2)
        if names and controller not in names.split(","):
            continue
        root = cgroups / names
        group = root / path.strip("/")
        yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(root))


def _read(file: Path) -> str:
    return file.read_text().strip()
