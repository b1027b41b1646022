"""What the gateway knows of the rest of the cluster, for metrics and watchers: as old as the last sync."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.balance.load import LoadStats
from cluster.types import TIERS


@dataclass(frozen=True)
class Snapshot:
    """One sync.

    members: {"id", "role", "health", "stats"} of each; load: what all routers saw, None before their first
    step; tiers: those that are offered; told: all of it, empty before the first sync.
    """

    members: Sequence[Mapping[str, Any]] = ()
    load: LoadStats | None = None
    tiers: tuple[str, ...] = TIERS
    told: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def read(told: Mapping[str, Any]) -> Snapshot:
        """told: `cluster` of a STATE header. Raises ProtocolError on broken statistics."""
        load = None if told["load"] is None else LoadStats.from_wire(told["load"])
        return Snapshot(tuple(told["members"]), load, tuple(told.get("tiers", TIERS)), told)

    def of(self, role: str) -> list[Mapping[str, Any]]:
        return [member for member in self.members if member["role"] == role]

    def total(self, role: str, count: str) -> float:
        """Sum of one of the counts of all members of a role."""
        return sum(float(member["stats"].get(count, 0)) for member in self.of(role))


class ClusterView:
    """Updated from a control thread, read on the gateway's loop.

    now: the last sync; replaced, never changed, so whoever has read it has figures of one moment.
    changed: set, and then replaced, on the loop after an update; closed: none follows.
    """

    def __init__(self) -> None:
        self.now = Snapshot()
        self.changed = asyncio.Event()
        self.closed = False

    def update(self, told: Mapping[str, Any]) -> None:
        """As Snapshot.read; what raises leaves all as it was."""
        self.now = Snapshot.read(told)

    def announce(self) -> None:
        """On the loop: wake whoever waits for `changed`."""
        self.changed.set()
        self.changed = asyncio.Event()

    def close(self) -> None:
        """On the loop: the gateway stops."""
        self.closed = True
        self.announce()
