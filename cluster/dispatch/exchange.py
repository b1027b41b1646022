"""The all-to-all from a router's side: one message to every node that a layer needs, one result buffer.

The calling thread does everything; no other thread, no asyncio. A call that is alone in flight goes the short
way (express.py) until something unusual happens to it; then, and for all other calls, every node that still
owes rows is a `Part`, and frames are handled one by one (replies.py). A node whose connection breaks keeps
its debts: the same bytes are sent again when it is back, and since an expert's
output is a pure function of the payload, nobody can tell.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from cluster.balance.choice import ChoicePolicy, flow
from cluster.balance.placement import PlacementTable
from cluster.dispatch.choice import Choice
from cluster.dispatch.express import ALL_IN, QUIET, Express
from cluster.dispatch.flight import Counters, Flight, Part
from cluster.dispatch.frames import Limits
from cluster.dispatch.handshake import Identity
from cluster.dispatch.kinds import Kind
from cluster.dispatch.link import Link
from cluster.dispatch.messages import Call
from cluster.dispatch.meter import LoadMeter
from cluster.dispatch.plan import Slot, Slots
from cluster.dispatch.poller import Poller
from cluster.dispatch.replies import Replies
from cluster.dispatch.roster import Roster
from cluster.dispatch.transport import ExpertCall, ExpertRows, WireShape
from cluster.errors import MoemeshError, NodeLost, Overloaded, Unavailable
from cluster.types import NodeId

DEADLINE_S = 10.0
RETRY_S = 0.05
"""Pause before a node that has not loaded its experts yet, or whose queue is full, is asked again."""

TICK_S = 0.02
IDLE_S = 0.25
"""Longest sleeps in `wait`: while a node is missing, and otherwise (an update or a deadline may be due)."""

EXPRESS_MS = int(IDLE_S * 1000)

TIMED_EVERY = 64
"""Of so many small calls one goes the general way, where every reply's arrival is seen, so that links are
timed without a clock on the short way. Large calls always go there."""

MAX_REPLY_BYTES = 1 << 30
"""No bound of ours: a reply's buffer exists before it arrives, and its length must match it."""

_DISPATCH = Kind.DISPATCH


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
        self._identity = identity
        self._incarnation = identity.incarnation
        self._shape = shape
        self._deadline_s = deadline_s
        self._clock = clock
        self._flights: dict[Call, Flight] = {}
        self._slots = Slots(shape)
        self._choice = Choice(shape.experts, choice)
        self._step = -1
        self._first_attempt = 0
        self._calls = 0
        self._unwell = False
        self._express = Express(shape, identity.incarnation)
        self._replies = Replies(identity.incarnation, self.counters, self._try_later)
        self._roster = Roster(table, addresses, self._new_link)
        self._look_after()

    def update(self, table: PlacementTable, addresses: Mapping[NodeId, str]) -> None:
        """Use these addresses from now on and this table from the next step on, or from `switch`; calls in
        flight keep their nodes but follow them to new addresses. An older table changes only addresses.
        Callable from any thread."""
        self._roster.post(table, addresses)

    def switch(self) -> None:
        """Between two steps: use the newest table."""
        if self._roster.posted:
            self._update()
            self._roster.switch()
        if not self._flights:
            self.acknowledged = (self.table.epoch, self.table.version)

    @property
    def table(self) -> PlacementTable:
        return self._roster.table

    @property
    def tampered(self) -> int:
        """How often bytes of its links were changed on their way here. Callable from any thread."""
        return sum(link.tampered for link in self._roster.all)

    def connect(self, timeout_s: float) -> None:
        """Wait until every node of the table is connected. Raises NodeLost or what a node refused with."""
        deadline = self._clock() + timeout_s
        self._look_after()
        while missing := self._roster.missing():
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

    def send(self, call: ExpertCall) -> None:
        """Send every node its rows; nothing is awaited. Raises ValueError if the same call is in flight."""
        if call.step != self._step:
            self._begin_step(call.step)
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
        small = self._express.fits(len(call.ids)) and self._calls % TIMED_EVERY
        if alone and small and self._settled():
            self._go_express(flight)
        else:
            self._go_by_parts()
            for node in slot.nodes():
                self._post(flight.part(node, roster.links[node]))

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
        flight.pace.observe(slot.experts, slot.plan[1], self.load.rows[layer])
        return ExpertRows(slot.results, slot.index)

    def close(self) -> None:
        self._roster.close()
        self._flights.clear()

    def _begin_step(self, step: int) -> None:
        """All of a step uses one table."""
        self._step = step
        self.load.end_step(self._roster.pace)
        self.switch()

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
            express.settle(self._roster.links, self._roster.pace.loads)
        return express.settled

    def _go_express(self, flight: Flight) -> None:
        missed = self._express.post(flight, self.counters)
        flight.express = True
        self.counters.express += 1
        if missed:
            self._go_by_parts()
            for node, sent in missed:
                part = self._roster.links[node].parts[flight.call]
                part.attempt -= not sent  # nothing of it is out
                self._post(part, sent)

    def _wait_express(self, flight: Flight) -> None:
        """Until all rows are in, or the call has left the short way."""
        place = self._express.gather(flight, self.counters, EXPRESS_MS)
        if place == ALL_IN:
            flight.express = False
            return
        self._go_by_parts()
        if place == QUIET:
            self._look_after()
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
                    flight.part(node, self._roster.links[node]).attempt = flight.first_attempt

    def _update(self) -> None:
        self._go_by_parts()
        self._roster.apply_posted()

    def _post(self, part: Part, sent: int = 0) -> None:
        """Send a part's request, if its node is there; otherwise it goes out when the node is.

        sent: bytes of it that the socket has taken already.
        """
        link = part.link
        connection = link.connection
        if connection is None or not link.ready:
            self._unwell = True
            return
        flight = part.flight
        if not sent:
            part.attempt += 1
        part.receiving = False
        alone = not sent and len(link.parts) == 1 and part.attempt == flight.first_attempt
        part.posted = self._clock() if alone else 0.0
        rows, counts, experts, body = flight.slot.request(part.node)
        tag = (self._incarnation, link.incarnation, *part.call, part.attempt, flight.table)
        header = [*tag, rows, counts, experts]
        try:
            if sent:
                head = connection.resume(_DISPATCH, header, body, sent)
            else:
                head = connection.send_body(_DISPATCH, header, body, keep=True)
        except (Unavailable, Overloaded) as error:  # a peer that reads nothing is as good as gone
            link.lose(str(error))
            return
        self.counters.sent(head, len(body))
        if part.attempt > flight.first_attempt:
            self.counters.resends += 1

    def _turn(self) -> None:
        """Wait for the sockets once and handle what they bring."""
        self._go_by_parts()
        events = self._roster.poller.wait(TICK_S if self._unwell else IDLE_S)
        if events:
            now = self._replies.now = self._clock()
            for link, mask in events:
                if link.connection is not None:  # an earlier event of this turn may have closed it
                    link.on_event(mask, now)
        if self._unwell or not events:
            self._look_after()

    def _try_later(self, part: Part, error: MoemeshError) -> None:
        part.failure = error
        part.retry_at = self._clock() + RETRY_S
        self._unwell = True

    def _look_after(self) -> None:
        """Everything that is not the fast path: updates, lost links, retries, deadlines."""
        if self._roster.posted:
            self._update()
            if not self._flights:
                self._roster.switch()
        self._unwell = False
        now = self._clock()
        for link in self._roster.all:
            link.due(now)
            if not link.ready:
                self._unwell = True
            for part in list(link.parts.values()):
                self._check(part, now)

    def _check(self, part: Part, now: float) -> None:
        """Retry or fail one part whose reply is not in."""
        link, flight = part.link, part.flight
        since = part.since if part.failure is not None else max(part.since, link.last_heard)
        if link.refusal is not None:
            flight.error = flight.error or link.refusal
        elif now - since > self._deadline_s:
            why = "it is silent" if link.ready else link.cause
            flight.error = (
                flight.error
                or part.failure
                or NodeLost(
                    f"node {link.node} at {link.address} did not answer layer {part.call[1]} within "
                    f"{self._deadline_s:g} s: {why}"
                )
            )
        elif part.retry_at:
            self._unwell = True
            if now >= part.retry_at and link.ready:
                part.retry_at = 0.0
                self._post(part)

    def _changed(self, link: Link) -> None:
        """A link has come up or was lost."""
        self._unwell = True
        self._express.settled = False
        if link.ready:
            for part in list(link.parts.values()):
                part.retry_at = 0.0
                self._post(part)

    def _abandon(self, flight: Flight) -> None:
        """Forget a failed call. Its slot is not used again: late rows may still be on their way into it. Nor
        are its attempts: the call may be made again with other rows, which late replies must not answer."""
        for part in flight.parts:
            part.link.parts.pop(part.call, None)
            self._first_attempt = max(self._first_attempt, part.attempt + 1)
        self._slots.discard(flight.slot)

    def _new_link(self, node: NodeId, address: str | None, poller: Poller) -> Link:
        return Link(
            node,
            address,
            identity=self._identity,
            poller=poller,
            limits=Limits(payload=MAX_REPLY_BYTES),
            sink=self._replies.buffer_for,
            on_frame=self._replies.receive,
            on_change=self._changed,
        )
