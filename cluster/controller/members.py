"""Who is in the cluster, as their last syncs told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from cluster.balance.load import LoadStats
from cluster.balance.placement import PlacementTable
from cluster.errors import ProtocolError

SUSPECTED_AFTER_S = 2.5
"""A member syncs twice a second; beyond some missed syncs others should stop counting on it."""

DEAD_AFTER_S = 10.0
"""Beyond this it is gone until it registers again."""

FIRST_PROTOCOL = 1
"""Of members that do not tell."""

NO_TABLE = (0, 0)
"""The (epoch, version) of a member that has loaded nothing."""


class Role(StrEnum):
    NODE = "node"
    ROUTER = "router"
    GATEWAY = "gateway"


class Health(StrEnum):
    ALIVE = "alive"
    SUSPECTED = "suspected"
    DEAD = "dead"


@dataclass(frozen=True)
class Member:
    """A role as of its last sync.

    table: (epoch, version) of the table that it has loaded, NO_TABLE before the first.
    error: (class name, message) of what keeps it from getting ready, None while nothing does.
    last_seen: controller's monotonic clock, seconds.
    load: what a router has seen of the experts' load.
    prepared: (epoch, version) of the table that a node has loaded in advance.
    known: the table that it has from an earlier controller.
    lost: the nodes that a router cannot reach, with the incarnation of each that it knew.
    software: the version of moemesh that its process runs, "" of one that does not tell. protocol: the newest
        that it speaks.
    """

    role: Role
    id: str
    incarnation: int
    address: str
    table: tuple[int, int]
    ready: bool
    error: tuple[str, str] | None
    last_seen: float
    stats: Mapping[str, Any] = field(default_factory=dict)
    leaving: bool = False
    load: LoadStats | None = None
    prepared: tuple[int, int] = NO_TABLE
    known: PlacementTable | None = None
    lost: Mapping[str, int] = field(default_factory=dict)
    software: str = ""
    protocol: int = FIRST_PROTOCOL

    @staticmethod
    def from_wire(header: Mapping[str, Any], now: float) -> Member:
        """A SYNC header as a member seen at `now`. Raises ProtocolError if it is not one."""
        try:
            error, load = header["error"], header.get("load")
            epoch, version = header.get("prepared", NO_TABLE)
            known = header.get("known")
            return Member(
                role=Role(header["role"]),
                id=str(header["id"]),
                incarnation=int(header["incarnation"]),
                address=str(header["address"]),
                table=(int(header["epoch"]), int(header["table"])),
                ready=bool(header["ready"]),
                error=None if error is None else (str(error[0]), str(error[1])),
                last_seen=now,
                stats=dict(header["stats"]),
                leaving=bool(header.get("leaving", False)),
                load=None if load is None else LoadStats.from_wire(load),
                prepared=(int(epoch), int(version)),
                known=None if known is None else PlacementTable.from_wire(known),
                lost={str(node): int(number) for node, number in dict(header.get("lost", {})).items()},
                software=str(header.get("software", "")),
                protocol=int(header.get("protocol", FIRST_PROTOCOL)),
            )
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ProtocolError(
                f"a peer sent a broken SYNC ({error!r}); are all versions the same?"
            ) from error


def health(member: Member, now: float) -> Health:
    silence = now - member.last_seen
    if silence > DEAD_AFTER_S:
        return Health.DEAD
    return Health.SUSPECTED if silence > SUSPECTED_AFTER_S else Health.ALIVE
