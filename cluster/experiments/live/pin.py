"""Threads and processes on one core each.

Left to itself the system keeps processes that wake each other on one core for a while, and spreads them over
several later: the same steps take twice as long before as after. On cores of their choice they take the same
time from the first step to the last.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from cluster.errors import ConfigError


def cores() -> tuple[int, ...]:
    """Those that this thread may use, ascending. Raises ConfigError where the system has no such thing."""
    if not hasattr(os, "sched_getaffinity"):
        raise ConfigError("this system binds no process to a core; run it on Linux")
    return tuple(sorted(os.sched_getaffinity(0)))


def pin(core: int) -> None:
    """The calling thread, and those that it starts from now on, run on `core` alone."""
    if core not in cores():
        raise ConfigError(f"core {core} is none of {cores()}")
    os.sched_setaffinity(0, {core})


@contextmanager
def pinned(core: int | None) -> Iterator[None]:
    """`pin` while the context lasts; None: as it was."""
    if core is None:
        yield
        return
    before = cores()
    pin(core)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
