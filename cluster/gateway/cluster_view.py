"""What the gateway knows of the rest of the cluster, for metrics and watchers: as old as the last sync."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from cluster.balance.load import LoadStats
from cluster.types import TIERS


class ClusterView:
    """Replaced as a whole by `update` from a control thread, read on the gateway's loop.

    members: {"id", "role", "health", "stats"} of each; load: what all routers saw, None before their first
    step; told: all of it, empty before the first sync; tiers: those that are offered.
    changed: set, and then replaced, on the loop after an update; closed: none follows.
    """

    def __init__(self) -> None:
        self.told: Mapping[str, Any] = {}
        self.tiers: tuple[str, ...] = TIERS
        self.changed = asyncio.Event()
        self.closed = False
        self.members: Sequence[Mapping[str, Any]] = ()
        self.load: LoadStats | None = None

    def update(self, told: Mapping[str, Any]) -> None:
        """told: `cluster` of a STATE header. Raises ProtocolError on broken statistics."""
        self.members = tuple(told["members"])
        self.load = None if told["load"] is None else LoadStats.from_wire(told["load"])
        self.tiers = tuple(told.get("tiers", TIERS))
        self.told = told

    def announce(self) -> None:
        """On the loop: wake whoever waits for `changed`."""
        self.changed.set()
        self.changed = asyncio.Event()

    def close(self) -> None:
        """On the loop: the gateway stops."""
        self.closed = True
        self.announce()

    def of(self, role: str) -> list[Mapping[str, Any]]:
        return [member for member in self.members if member["role"] == role]

    def total(self, role: str, count: str) -> float:
        """Sum of one of the counts of all members of a role."""
        return sum(float(member["stats"].get(count, 0)) for member in self.of(role))
