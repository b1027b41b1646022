"""Connections whose peer is not known yet: how many there may be, for how long, and what became of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cluster.dispatch.connection import Connection


@dataclass(slots=True)
class Turned:
    """Connections that a server ended. late: their peer did not greet in time; shed: nor before others came;
    refused: it is no member; tampered: it is, and somebody changed what it sent."""

    late: int = 0
    shed: int = 0
    refused: int = 0
    tampered: int = 0

    def counts(self) -> dict[str, int]:
        """For statistics."""
        strangers = self.late + self.shed + self.refused
        return {"strangers_turned_away": strangers, "links_tampered_with": self.tampered}


class Strangers:
    """At most `most`, each for `patience_s`. Used by the server's thread; `len` by any.

    A bound that kept newcomers out would be a switch for whoever fills it: the oldest makes room.
    """

    def __init__(self, most: int, patience_s: float, clock: Callable[[], float]) -> None:
        self._most = most
        self._patience_s = patience_s
        self._clock = clock
        self._due: dict[Connection, float] = {}  # by when they must have greeted; the oldest first

    def __len__(self) -> int:
        return len(self._due)

    def enter(self, connection: Connection) -> Connection | None:
        """Returns whom it displaces, who is no stranger of this server's any more."""
        oldest = next(iter(self._due)) if len(self._due) >= self._most else None
        if oldest is not None:
            del self._due[oldest]
        self._due[connection] = self._clock() + self._patience_s
        return oldest

    def leave(self, connection: Connection) -> bool:
        """It has greeted, or is gone. Whether it was one."""
        return self._due.pop(connection, None) is not None

    def late(self) -> list[Connection]:
        now = self._clock()
        return [connection for connection, due in self._due.items() if due <= now]

    def patience(self) -> float | None:
        """Seconds until the oldest is late, None without one."""
        for due in self._due.values():
            return max(0.0, due - self._clock())
        return None
