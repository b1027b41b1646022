"""Memory that this machine, or the cgroup that we are in, has left."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil

CGROUPS = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")


def free_memory(cgroups: Path = CGROUPS, own: Path = OWN) -> int:
    """Bytes: the least of what the machine has available and what each cgroup above us still allows."""
    return min(psutil.virtual_memory().available, *_allowed(cgroups, own), 1 << 62)


def _allowed(cgroups: Path, own: Path) -> Iterator[int]:
    """Of version 2: `0::/a/b` names our group, and its parents' limits count, too."""
    try:
        line = next(line for line in own.read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return
    group = cgroups / line.removeprefix("0::").strip("/")
    for folder in (group, *group.parents):
        if folder.is_relative_to(cgroups) and (left := _left(folder)) is not None:
            yield left


def _left(folder: Path) -> int | None:
    try:
        limit = (folder / "memory.max").read_text().strip()
        used = int((folder / "memory.current").read_text())
    except (OSError, ValueError):
        return None
    return None if limit == "max" else max(int(limit) - used, 0)
