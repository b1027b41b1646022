"""Memory that this machine, or the cgroup that we are in, has left."""

from __future__ import annotations

from pathlib import Path

import psutil

from cluster.fleet.cgroups import CGROUPS, OWN, memory_limits


def free_memory(cgroups: Path = CGROUPS, own: Path = OWN) -> int:
    """Bytes: the least of what the machine has available and what each cgroup above us still allows."""
    left = (limit.left for limit in memory_limits(cgroups, own))
    return min(psutil.virtual_memory().available, *left, 1 << 62)
