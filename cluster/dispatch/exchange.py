"""The all-to-all from a router's side: one message to every node that a layer needs, one result buffer.

The calling thread does everything; no other thread, no asyncio. A call that is alone in flight goes the short
way (express.py) until something unusual happens to it; then, and for all other calls, every node that still
owes rows is a `Part`, and frames are handled one by one (replies.py).

A node whose connection breaks, that is silent or late, is suspended (upkeep.py): the bytes that it was sent
go to others that hold the experts (rescue.py), and where there are none, to itself again when it is back.
Since an expert's output is a pure function of the payload, nobody can tell.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from cluster.balance.choice import ChoicePolicy, flow
from cluster.balance.placement import PlacementTable
from cluster.dispatch.budget import HedgeBudget
from cluster.dispatch.choice import Choice
from cluster.dispatch.express import ALL_IN, QUIET, Express
from cluster.dispatch.flight import Counters, Flight
from cluster.dispatch.frames import Limits
from cluster.dispatch.handshake import Identity
from cluster.dispatch.link import Link
from cluster.dispatch.messages import Call
from cluster.dispatch.meter import LoadMeter
from cluster.dispatch.plan import Slot, Slots
from cluster.dispatch.poller import Poller
from cluster.dispatch.posting import IDLE_S, Posting
from cluster.dispatch.replies import Replies
from cluster.dispatch.roster import Roster
from cluster.dispatch.transport import ExpertCall, ExpertRows, WireShape
from cluster.dispatch.upkeep import Upkeep
from cluster.errors import NodeLost
from cluster.types import NodeId

DEADLINE_S = 10.0
TICK_S = 0.02
"""Longest sleep in `wait` while a node is not as it should be."""

GRACE_S = 1.0

TIMED_EVERY = 64
"""Of so many small calls one goes the general way, where every reply's arrival is seen, so that links are
timed without a clock on the short way. Large calls always go there."""

EAGER_EVERY = 8
"""The same while it is not known yet how long some node takes to answer."""

MAX_REPLY_BYTES = 1 << 30
"""No bound of ours: a reply's buffer exists before it arrives, and its length must match it."""


class Exchange:
    """An ExpertTransport over TCP. One thread calls send, wait, connect and close; any thread calls update.

    identity: this router's; its library must be the nodes'.
    choice: which copy computes which rows, where an expert has several.
    deadline_s: a call fails with NodeLost when a node that owes rows has been silent for so long.
    """

    def __init__(
        self,
        identity: Identity,
        shape: WireShape,
        table: PlacementTable,
        addresses: Mapping[NodeId, str],
        *,
        choice: ChoicePolicy = flow,
        deadline_s: float = DEADLINE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.counters = Counters()
        self.load = LoadMeter(shape)
        """Of the steps so far."""
        self.acknowledged = (table.epoch, table.version)
        """Epoch and version of the newest table beside which no older one is in use."""
        self.tampered = 0
        """How often bytes of links were changed on their way here."""
        self._identity = identity
        self._incarnation = identity.incarnation
        self._shape = shape
        self._clock = clock
        self._flights: dict[Call, Flight] = {}
        self._slots = Slots(shape)
        self._choice = Choice(shape.experts, choice)
        self._step = -1
        self._first_attempt = 0
        self._calls = self._pairs = 0
        self._patience_ms = 0
        self._express = Express(shape, identity.incarnation)
        self._posting = Posting(identity.incarnation, shape, self.counters, clock)
        self._upkeep = Upkeep(
            shape, self.counters, self._posting, HedgeBudget(), deadline_s, clock, self._unsettle
        )
        self._replies = Replies(identity.incarnation, self.counters, self._upkeep)
        self._roster = Roster(table, addresses, self._new_link)
        self._upkeep.follow(self._roster)
        self._look_after()

    def update(self, table: PlacementTable, addresses: Mapping[NodeId, str], mending: bool = False) -> None:
        """Use these addresses from now on and this table from the next step on, or from `switch`, or sooner
        if a node is lost; calls in flight keep their nodes but follow them to new addresses. An older table
        changes only addresses. Callable from any thread.

        mending: experts that no node holds are being loaded: wait for them longer than for a silent node.
        """
        self._roster.post(table, addresses, mending)

    @property
    def lost(self) -> dict[NodeId, int]:
        """Nodes of the table that cannot be reached or are silent, with the incarnation that was known. From
        any thread."""
        return self._upkeep.lost

    def when_lost(self, tell: Callable[[], None]) -> None:
        """Have the exchange's thread call `tell` whenever `lost` has changed."""
        self._upkeep.on_loss = tell

    def switch(self) -> None:
        """Between two steps: use the newest table."""
        if self._roster.posted:
            self._update()
            self._roster.switch()
            self._upkeep.rank()
        if not self._flights:
            self.acknowledged = (self.table.epoch, self.table.version)

    @property
    def table(self) -> PlacementTable:
        return self._roster.table

    def connect(self, timeout_s: float) -> None:
        """Wait until every node of the table is connected, for GRACE_S at most if others hold the experts of
        those that are not. Raises NodeLost or what a node refused with."""
        begin = self._clock()
        deadline = begin + timeout_s
        self._look_after()
        while missing := self._roster.missing():
            if self._clock() - begin > GRACE_S and self._roster.complete():
                return
            if missing.refusal is not None:
                raise missing.refusal
            if self._clock() > deadline:
                raise NodeLost(f"node {missing.node} at {missing.address} cannot be reached: {missing.cause}")
            self._turn()

    def ready(self) -> bool:
        """Whether every node of the table is connected."""
        return self._roster.missing() is None

    def loads(self) -> dict[NodeId, tuple[int, int]]:
        """(messages waiting, service time in µs) of every node, as its last reply told."""
        return {link.node: (int(link.load[0]), int(link.load[1])) for link in self._roster.links}

    def service(self) -> dict[NodeId, tuple[float, float]]:
        """(messages, seconds of service) that every node's answers told in the last step. Between steps."""
        pace = self._roster.pace
        messages, seconds = pace.sums[:, 0].tolist(), pace.sums[:, 3].tolist()
        return dict(zip(pace.nodes, zip(messages, seconds, strict=True), strict=True))

    def latency_s(self) -> float:
        """Of a round trip to the farthest node of the table, beside what it computes; 0.0 before the first.
        Between steps."""
        return max(self._posting.times.of(node).link_s for node in self.table.nodes)

    def send(self, call: ExpertCall) -> None:
        """Send every node its rows; nothing is awaited. Raises ValueError if the same call is in flight."""
        if call.step != self._step:
            self._begin_step(call.step)
        elif self._upkeep.unwell and self._roster.posted:  # do not stay with nodes that are gone
            self.switch()
        roster = self._roster
        key = (call.step, call.layer, call.micro_batch)
        if key in self._flights:
            raise ValueError(f"call {key} is in flight already")
        slot = self._slots.take(call.micro_batch)
        self._plan(slot, call)
        slot.busy = True
        flight = Flight(slot, roster.pace, key, roster.table.version, self._first_attempt, self._clock())
        alone = not self._flights
        self._flights[key] = flight
        self._calls += 1
        every = TIMED_EVERY if self._posting.known else EAGER_EVERY
        small = self._express.fits(len(call.ids)) and self._calls % every
        if alone and small and self._settled():
            self._go_express(flight)
        else:
            self._go_by_parts()
            for node in slot.nodes():
                self._posting.post(flight.part(node, roster.links[node]))
        pairs = call.ids.size
        self.counters.pairs += pairs
        if pairs != self._pairs or not flight.express:
            self._pairs = pairs
            self._patience_ms = int(1e3 * self._posting.patience_s(roster.pace, pairs))
        if self._upkeep.unwell:
            self._upkeep.sent(flight)

    def wait(self, step: int, layer: int, micro_batch: int) -> ExpertRows:
        """The rows of one call, in one buffer. Raises as ExpertTransport says; KeyError for no such call."""
        key = (step, layer, micro_batch)
        flight = self._flights[key]
        if flight.express:
            self._wait_express(flight)
        while flight.left and flight.error is None:
            self._turn()
        del self._flights[key]
        if flight.error is not None:
            self._abandon(flight)
            raise flight.error
        slot = flight.slot
        slot.busy = False
        experts, pair_start = slot.experts, slot.plan[1]
        if flight.parts:
            experts, pair_start = flight.computed()
            if flight.torn:
                self._slots.discard(slot)
        flight.pace.observe(experts, pair_start, self.load.rows[layer])
        return ExpertRows(slot.results, slot.index)

    def close(self) -> None:
        self._upkeep.closed = True
        self._roster.close()
        self._flights.clear()

    def _begin_step(self, step: int) -> None:
        """All of a step uses one table, unless a node of it is lost."""
        self._step = step
        self.load.end_step(self._roster.pace)
        self.switch()
        if self._upkeep.unwell:
            self._turn(0.0)

    def _plan(self, slot: Slot, call: ExpertCall) -> None:
        roster = self._roster
        nodes, layer = len(roster.links), roster.replicas(call.layer)
        if layer is None:
            slot.fill(call, roster.owners(call.layer), nodes)
        else:
            slot.fill_copies(call, layer, self._choice.copies(call.ids, layer, roster.pace), nodes)

    def _settled(self) -> bool:
        express = self._express
        if not express.settled:
            express.settle(self._roster.links, self._roster.ranks, self._roster.pace.loads)
        return express.settled

    def _go_express(self, flight: Flight) -> None:
        missed = self._express.post(flight, self.counters)
        flight.express = True
        self.counters.express += 1
        if missed:
            self._go_by_parts()
            for node, sent in missed:
                part = next(part for part in flight.parts if part.node == node)
                part.asked = sent > 0
                self._posting.post(part, sent)

    def _wait_express(self, flight: Flight) -> None:
        """Until all rows are in, or the call has left the short way."""
        place = self._express.gather(flight, self.counters, self._patience_ms)
        if place == ALL_IN:
            flight.express = False
            return
        self._go_by_parts()
        if place == QUIET:
            self._turn(0.0)  # other links were not read meanwhile: their silence says nothing
            return
        link, rest = self._roster.links[place], self._express.rest(self.counters)
        if rest:  # else the stream has ended, which the next turn sees
            link.on_bytes(rest, self._clock())

    def _go_by_parts(self) -> None:
        """From here on frames are read one by one: whoever still owes rows to an express call is a part."""
        self._express.settled = False
        for flight in self._flights.values():
            if flight.express:
                flight.express = False
                for node in flight.slot.waiting.nonzero()[0].tolist():
                    part = flight.part(node, self._roster.links[node])
                    part.asked = True
                    self._posting.expect(part, flight.since, len(part.request()[3]))

    def _unsettle(self) -> None:
        self._express.settled = False

    def _update(self) -> None:
        self._go_by_parts()
        self._roster.apply_posted()

    def _turn(self, longest_s: float = IDLE_S) -> None:
        """Wait for the sockets once and handle what they bring."""
        self._go_by_parts()
        left = max(self._posting.due - self._clock(), 0.0)
        events = self._roster.poller.wait(min(left, longest_s, TICK_S if self._upkeep.unwell else IDLE_S))
        now = self._clock()
        for link, mask in events:
            if link.connection is not None:  # an earlier event of this turn may have closed it
                link.on_event(mask, now)
        if self._upkeep.unwell or not events or now >= self._posting.due:
            self._look_after(now)

    def _look_after(self, now: float | None = None) -> None:
        """now: when the links were last read."""
        if self._roster.posted:
            self._update()
            if not self._flights:
                self._roster.switch()
                self._upkeep.rank()
        self._upkeep.look_after(self._clock() if now is None else now)

    def _abandon(self, flight: Flight) -> None:
        """Forget a failed call. Its slot is not used again: late rows may still be on their way into it. Nor
        are its attempts: the call may be made again with other rows, which late replies must not answer."""
        for part in flight.parts:
            part.forget()
        self._first_attempt = max(self._first_attempt, flight.attempt + 1)
        self._slots.discard(flight.slot)

    def _note_tampered(self) -> None:
        self.tampered += 1

    def _new_link(self, node: NodeId, address: str | None, poller: Poller) -> Link:
        return Link(
            node,
            address,
            identity=self._identity,
            poller=poller,
            limits=Limits(payload=MAX_REPLY_BYTES),
            sink=self._replies.buffer_for,
            on_frame=self._replies.receive,
            on_change=self._upkeep.changed,
            on_tampered=self._note_tampered,
        )
