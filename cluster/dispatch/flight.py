"""Calls whose replies are not all in: what was asked of whom, and what is known about the answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from cluster.dispatch.messages import Call
from cluster.dispatch.plan import Slot
from cluster.errors import MoemeshError

if TYPE_CHECKING:
    from cluster.dispatch.link import Link
    from cluster.dispatch.pace import Pace


class Counters:
    """Bytes and messages of the data plane; header bytes include the frame's prefix.

    tally: int64 [7], as kernels/express.py counts: header bytes, payload bytes and messages out, the same in;
    the last entry is that module's own. stale: replies to what was over. express: calls on the short way.
    """

    __slots__ = ("express", "resends", "stale", "tally")

    def __init__(self) -> None:
        self.tally = np.zeros(7, np.int64)
        self.resends = self.stale = self.express = 0

    def sent(self, header: int, payload: int) -> None:
        self.tally[:3] += (header, payload, 1)

    def received(self, header: int, payload: int) -> None:
        self.tally[3:6] += (header, payload, 1)

    @property
    def header_bytes_out(self) -> int:
        return int(self.tally[0])

    @property
    def payload_bytes_out(self) -> int:
        return int(self.tally[1])

    @property
    def messages_out(self) -> int:
        return int(self.tally[2])

    @property
    def header_bytes_in(self) -> int:
        return int(self.tally[3])

    @property
    def payload_bytes_in(self) -> int:
        return int(self.tally[4])

    @property
    def messages_in(self) -> int:
        return int(self.tally[5])


class Flight:
    """One call. express: it is still on the short way, and has no parts. left: parts whose reply is not in.
    since: when it was asked for. pace: of the nodes that the slot's plan has. error: why the call has failed,
    if it has."""

    __slots__ = (
        "call",
        "error",
        "express",
        "first_attempt",
        "left",
        "pace",
        "parts",
        "since",
        "slot",
        "table",
    )

    def __init__(
        self, slot: Slot, pace: Pace, call: Call, table: int, first_attempt: int, since: float
    ) -> None:
        self.slot = slot
        self.pace = pace
        self.call = call
        self.table = table
        self.first_attempt = first_attempt
        self.since = since
        self.express = False
        self.parts: list[Part] = []
        self.left = 0
        self.error: MoemeshError | None = None

    def part(self, node: int, link: Link) -> Part:
        """A new part: node `node` of the slot's plan, at `link`, owes its rows."""
        part = link.parts[self.call] = Part(self, self.call, node, link, self.since)
        self.parts.append(part)
        self.left += 1
        return part


class Part:
    """One node's share of a call: its request lies in the slot until the reply is in.

    node: its place in the slot's plan. posted: when its first request was handed to the socket, if nothing
    else was owed there; 0.0 otherwise. attempt: of the last request sent. since: when it was asked for.
    receiving: the reply's header has come. retry_at, failure: the node asked us to try later, and why.
    """

    __slots__ = (
        "attempt",
        "call",
        "failure",
        "flight",
        "link",
        "node",
        "posted",
        "receiving",
        "retry_at",
        "since",
    )

    def __init__(self, flight: Flight, call: Call, node: int, link: Link, since: float) -> None:
        self.flight = flight
        self.call = call
        self.node = node
        self.link = link
        self.attempt = flight.first_attempt - 1
        self.since = since
        self.posted = 0.0
        self.receiving = False
        self.retry_at = 0.0
        self.failure: MoemeshError | None = None
