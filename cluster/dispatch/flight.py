"""Calls whose replies are not all in: what was asked of whom, and what is known about the answers.

A node's share of a call is a `Part`. What is missing too long is asked of others as well: those are its
deputies (cluster/dispatch/deputy.py), each for some of its rows. A part is done when its own reply is in, or
those of deputies that together have all of its rows; whoever comes later is too late, and its rows, which
would be the same, are thrown away.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from cluster.dispatch.messages import Call
from cluster.dispatch.plan import Slot
from cluster.dispatch.transport import Array
from cluster.errors import MoemeshError
from cluster.types import NodeId

if TYPE_CHECKING:
    from cluster.dispatch.deputy import Deputy
    from cluster.dispatch.link import Link
    from cluster.dispatch.pace import Pace

Debt = tuple[int, int, int, int]
"""(step, layer, micro-batch, attempt): names a request to one node."""

Request = tuple[int, memoryview, bytes, memoryview]
"""(rows, counts, experts, payload) of a DISPATCH."""


class Counters:
    """Bytes and messages of the data plane; header bytes include the frame's prefix.

    tally: int64 [7], as kernels/express.py counts: header bytes, payload bytes and messages out, the same in;
    the last entry is that module's own. stale: replies to what was over. express: calls on the short way.
    pairs: (row, expert) pairs asked for. resends: requests sent again to the same node. deputies: requests
    for rows that another node owed. hedges: times that all of a part was asked of others on suspicion,
    hedged_pairs: how much that was. canaries: requests to see whether a node is well again. strikes:
    suspensions of nodes. overdue: answers that came after others had given them.
    """

    __slots__ = (
        "canaries",
        "deputies",
        "express",
        "hedged_pairs",
        "hedges",
        "overdue",
        "pairs",
        "resends",
        "stale",
        "strikes",
        "tally",
    )

    def __init__(self) -> None:
        self.tally = np.zeros(7, np.int64)
        self.resends = self.stale = self.express = self.pairs = 0
        self.deputies = self.hedges = self.hedged_pairs = self.canaries = self.strikes = self.overdue = 0

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


class Flight:
    """One call. express: it is still on the short way, and has no parts. left: parts that are not done.
    since: when it was asked for. pace: of the nodes that the slot's plan has. error: why the call has failed,
    if it has. attempt: the last number given to a request of it."""

    __slots__ = (
        "attempt",
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
        self.first_attempt = self.attempt = first_attempt
        self.since = since
        self.express = False
        self.parts: list[Part] = []
        self.left = 0
        self.error: MoemeshError | None = None

    def part(self, node: int, link: Link) -> Part:
        """A new part: node `node` of the slot's plan, at `link`, owes its rows."""
        first, last = self.slot.pairs(node)
        part = Part(self, node, link, last - first, self.first_attempt, self.since)
        self.parts.append(part)
        self.left += 1
        return part

    def next_attempt(self) -> int:
        self.attempt += 1
        return self.attempt

    @property
    def torn(self) -> bool:
        """Whether a reply that nobody waits for any more is on its way into the slot."""
        return any(part.receiving and part.key in part.link.overdue for part in self.parts)

    def computed(self) -> tuple[Array, Array]:
        """(experts int32 [pairs], pair_start [nodes + 1]): who has computed which pairs, in the order of the
        nodes. Differs from the slot's plan where deputies did; one that is not of this plan's nodes counts
        for the node that it stood in for."""
        slot = self.slot
        starts: Array = slot.plan[1]
        if not any(part.deputies for part in self.parts):
            return slot.experts, starts
        by: Array = np.repeat(np.arange(starts.size - 1), np.diff(starts))
        names = self.pace.nodes
        for part in self.parts:
            for deputy in part.deputies:
                if deputy.link.node in names:
                    by[deputy.targets] = names.index(deputy.link.node)
        order = np.argsort(by, kind="stable")
        where = np.zeros_like(starts)
        np.cumsum(np.bincount(by, minlength=starts.size - 1), out=where[1:])
        return np.ascontiguousarray(slot.experts[order]), where


class Part:
    """One node's share of a call: its request lies in the slot until the reply is in. It is in its link's
    debts until it is done.

    node: its place in the slot's plan. pairs: how many it owes. posted: when its first request was handed to
    the socket, if nothing else was owed there; 0.0 otherwise. attempt: of the last request, sent if `asked`.
    since: when the call was made. begun: when the last request went out; expected: seconds that its answer
    should take. receiving: the reply's header has come. retry_at, failure: the node asked us to try later,
    and why.
    hedge_at, late_at: when others may and must be asked. deputies: those that were; open: [*] int64, which of
    its pairs none of them has, counted from its first. refused: nodes that cannot serve its rows, and until
    when they are not to be asked again.
    """

    __slots__ = (
        "asked",
        "attempt",
        "begun",
        "call",
        "deputies",
        "done",
        "expected",
        "failure",
        "flight",
        "hedge_at",
        "late_at",
        "link",
        "node",
        "open",
        "pairs",
        "posted",
        "receiving",
        "refused",
        "retry_at",
        "since",
    )

    def __init__(self, flight: Flight, node: int, link: Link, pairs: int, attempt: int, since: float) -> None:
        self.flight = flight
        self.call = flight.call
        self.node = node
        self.link = link
        self.pairs = pairs
        self.attempt = attempt
        self.since = since
        self.asked = self.done = self.receiving = False
        self.posted = self.retry_at = self.begun = self.expected = 0.0
        self.hedge_at = self.late_at = math.inf
        self.failure: MoemeshError | None = None
        self.deputies: list[Deputy] = []
        self.open: Array | None = None
        self.refused: dict[NodeId, float] = {}
        link.parts[self.key] = self

    def refuse(self, node: NodeId, until: float) -> None:
        """A node cannot serve its rows before `until`; inf: not at all."""
        self.refused[node] = until

    def forgive(self, now: float) -> None:
        """Who was busy for a moment may be asked again."""
        if self.may_ask_again:
            self.refused = {node: until for node, until in self.refused.items() if until > now}

    @property
    def may_ask_again(self) -> bool:
        """Whether a node has refused for a moment only."""
        return any(until < math.inf for until in self.refused.values())

    @property
    def key(self) -> Debt:
        return (*self.call, self.attempt)

    @property
    def places(self) -> Array:
        """[pairs] int64: where its pairs are in the slot."""
        first, last = self.flight.slot.pairs(self.node)
        return np.arange(first, last)

    @property
    def covered(self) -> bool:
        """Whether deputies have all of its rows."""
        return self.open is not None and not self.open.size

    def request(self) -> Request:
        return self.flight.slot.request(self.node)

    def region(self) -> memoryview:
        """Where its result rows belong."""
        return self.flight.slot.region(self.node)

    def ask_again(self) -> None:
        """The next request has another number, so that an answer to this one is recognised as old."""
        del self.link.parts[self.key]
        self.attempt = self.flight.next_attempt()
        self.link.parts[self.key] = self

    def answered(self) -> None:
        """Its own reply is in."""
        self._end()
        for deputy in self.deputies:
            if not deputy.done:
                deputy.release()
        self.deputies = [deputy for deputy in self.deputies if deputy.done]

    def deputised(self) -> None:
        """A deputy has answered, or some more pairs have one."""
        if not self.done and self.covered and all(deputy.done for deputy in self.deputies):
            self._end()
            self.release()

    def release(self) -> None:
        """Nobody waits for it any more, though it may still be answered."""
        self.link.parts.pop(self.key, None)
        if self.asked and self.link.ready:
            self.link.overdue[self.key] = self

    def _end(self) -> None:
        self.done = True
        self.link.parts.pop(self.key, None)
        self.flight.left -= 1

    def forget(self) -> None:
        """The call has failed: nothing of it is owed any more."""
        self.link.parts.pop(self.key, None)
        for deputy in self.deputies:
            deputy.link.parts.pop(deputy.key, None)
