"""Calls whose replies are not all in: what was asked of whom, and what is known about the answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cluster.dispatch.messages import Call
from cluster.dispatch.plan import Slot
from cluster.errors import MoemeshError

if TYPE_CHECKING:
    from cluster.dispatch.link import Link


@dataclass(slots=True)
class Counters:
    """Bytes and messages of the data plane; header bytes include the frame's prefix."""

    header_bytes_out: int = 0
    payload_bytes_out: int = 0
    header_bytes_in: int = 0
    payload_bytes_in: int = 0
    messages_out: int = 0
    messages_in: int = 0
    resends: int = 0
    stale: int = 0


class Flight:
    """One call. left: parts whose reply is not in; error: why the call has failed, if it has."""

    __slots__ = ("error", "first_attempt", "left", "parts", "slot", "table")

    def __init__(self, slot: Slot, table: int, first_attempt: int) -> None:
        self.slot = slot
        self.table = table
        self.first_attempt = first_attempt
        self.parts: list[Part] = []
        self.left = 0
        self.error: MoemeshError | None = None


class Part:
    """One node's share of a call: its request lies in the slot until the reply is in.

    node: its place in the slot's plan. attempt: of the last request sent. since: when it was asked for.
    receiving: the reply's header has come. retry_at, failure: the node asked us to try later, and why.
    """

    __slots__ = ("attempt", "call", "failure", "flight", "link", "node", "receiving", "retry_at", "since")

    def __init__(self, flight: Flight, call: Call, node: int, link: Link, since: float) -> None:
        self.flight = flight
        self.call = call
        self.node = node
        self.link = link
        self.attempt = flight.first_attempt - 1
        self.since = since
        self.receiving = False
        self.retry_at = 0.0
        self.failure: MoemeshError | None = None
