"""What processes hold: of requests, as they tell themselves, and of the machine, as it tells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil

from cluster.controller.members import Role
from cluster.experiments.chaos import history as h
from cluster.experiments.chaos.history import History
from cluster.experiments.chaos.schedule import CONTROLLER
from cluster.experiments.chaos.supervised import Members, Supervised

OWED = {
    Role.ROUTER.value: ("running", "waiting", "kv_pages_used"),
    Role.GATEWAY.value: ("outstanding", "queued"),
    Role.NODE.value: ("waiting", "waiting_rows"),
}
"""Counts of each role that are 0 while there is no request."""

MOST_GROWTH = {"rss": 0.10, "fds": 0.10, "threads": 0.10}
LEAST_SLACK = {"rss": 16 << 20, "fds": 12, "threads": 3}
"""A long run is flat if the line through a process's samples rises by no more than this part of its mean, or
by this much: bytes, files, threads. An allocator keeps what it once took."""

SETTLING = 1 / 3
"""Part of a process's samples, its first ones, that do not count: caches fill, connections are made."""

LEAST_SAMPLES = 12


@dataclass(frozen=True)
class Sample:
    """Of one process. t: seconds after the start."""

    t: float
    pid: int
    process: str
    rss: int
    fds: int
    threads: int


def owed(members: Members) -> dict[str, int]:
    """What belongs to requests, by member and name, without what is 0."""
    return {
        f"{name} {what}": count
        for name, member in members.items()
        for what, count in _owed(member["role"], member["stats"]).items()
        if count
    }


def _owed(role: str, stats: Mapping[str, Any]) -> dict[str, int]:
    return {what: int(stats.get(what, 0)) for what in OWED[role]}


def record(cluster: Supervised, history: History, first: bool) -> None:
    """A `history.Held` of every process. first: as there."""
    members = cluster.members()
    for name in list(cluster.running):
        member = members.get(name)
        role = CONTROLLER if member is None else str(member["role"])
        counts = {} if member is None else _owed(role, member["stats"])
        sample = look(cluster, name, history.now)
        if sample is not None:
            measured = {"threads": sample.threads, "fds": sample.fds, "rss": sample.rss}
            history.add(h.Held, process=name, role=role, first=first, owed=counts, **measured)


def look(cluster: Supervised, name: str, now: float) -> Sample | None:
    """None where it is being killed at this moment."""
    try:
        pid = cluster.pid(name)
        process = psutil.Process(pid)
        with process.oneshot():
            rss, threads = process.memory_info().rss, process.num_threads()
        return Sample(now, pid, name, int(rss), process.num_fds(), threads)
    except (KeyError, psutil.Error):
        return None


@dataclass(frozen=True)
class Growth:
    """Of one figure of one process: its mean, and how much it has risen over the samples that count."""

    process: str
    what: str
    mean: float
    rise: float

    @property
    def flat(self) -> bool:
        return self.rise <= max(MOST_GROWTH[self.what] * self.mean, LEAST_SLACK[self.what])


def growth(samples: Sequence[Sample]) -> list[Growth]:
    """Of every process (by its pid) with enough samples: the rise of the least-squares line through them."""
    found = []
    for pid in dict.fromkeys(sample.pid for sample in samples):
        own = [sample for sample in samples if sample.pid == pid]
        own = own[int(len(own) * SETTLING) :]
        if len(own) < LEAST_SAMPLES:
            continue
        times = np.array([sample.t for sample in own])
        for what in MOST_GROWTH:
            values = np.array([getattr(sample, what) for sample in own], dtype=np.float64)
            slope = np.polyfit(times - times[0], values, 1)[0]
            found.append(Growth(own[0].process, what, float(values.mean()), float(slope * np.ptp(times))))
    return found
