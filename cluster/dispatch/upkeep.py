"""Everything of the exchange that is not the fast path: lost links, silence, lateness, retries, giving up."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

from cluster.dispatch import health
from cluster.dispatch.budget import HedgeBudget
from cluster.dispatch.deputy import Deputy
from cluster.dispatch.flight import Counters, Flight, Part
from cluster.dispatch.health import PING_AFTER_S, SILENT_S, Standing
from cluster.dispatch.link import Link
from cluster.dispatch.posting import IDLE_S, Posting
from cluster.dispatch.rescue import AWAY, Rescue, rank_of
from cluster.dispatch.roster import Roster
from cluster.dispatch.transport import WireShape
from cluster.errors import MoemeshError, NodeLost
from cluster.types import NodeId

log = logging.getLogger(__name__)

RETRY_S = 0.05
"""Pause before a node that has not loaded its experts yet, or whose queue is full, is asked again."""

MEND_S = 300.0
"""How long a call waits for experts that are being loaded elsewhere: a large shard from a slow disk."""

LOST_DOWN_S, LOST_SILENT_S = 0.15, 1.0
"""A node that cannot be reached, or says nothing, for so long is reported as lost."""


class Upkeep:
    """Used by the exchange's thread; `lost` may be read by any.

    unwell: some node of the table is not as it should be, so that somebody has to look after it now and then.
    closed: nothing matters. on_loss: called when `lost` has changed.
    """

    def __init__(
        self,
        shape: WireShape,
        counters: Counters,
        posting: Posting,
        budget: HedgeBudget,
        deadline_s: float,
        clock: Callable[[], float],
        unsettle: Callable[[], None],
    ) -> None:
        self.unwell = self.closed = False
        self.lost: dict[NodeId, int] = {}
        self.on_loss: Callable[[], None] = _nothing
        self._counters = counters
        self._posting = posting
        self._rescue = Rescue(shape, counters, budget, posting.post, clock)
        self._deadline_s = deadline_s
        self._clock = clock
        self._unsettle = unsettle
        self._shape = shape
        self._mended = -math.inf
        self._roster: Roster

    def follow(self, roster: Roster) -> None:
        """Look after these links from now on."""
        self._roster = roster

    def look_after(self, now: float) -> None:
        """Reconnect, judge, retry, ask others, give up: whatever is due. now: when the links were last read;
        one of which bytes came then is not late."""
        self._posting.due = now + IDLE_S
        if self._roster.mending:
            self._mended = now
        for link in self._roster.all:
            link.due(now)
            self._judge(link, now)
            for part in list(link.parts.values()):
                if link.parts.get(part.key) is part:  # else an earlier one's fate has settled it
                    self._check(part, now)
        self.rank()
        self._report(now)

    def rank(self) -> None:
        """Rate the nodes of the table anew."""
        ranks = tuple(rank_of(link) for link in self._roster.links)
        self.unwell = any(ranks)
        if self._roster.rank(ranks if self.unwell else ()):
            self._unsettle()

    def sent(self, flight: Flight) -> None:
        """A call is under way: nodes on probation get a copy of some of its rows."""
        for link in self._roster.links:
            if Rescue.may_be_tried(link):
                self._rescue.try_out(self._roster, flight, link)

    def changed(self, link: Link) -> None:
        """A link has come up or was lost."""
        if self.closed or self._roster.link(link.node) is not link:
            return
        now = self._clock()
        self.unwell = True
        self._posting.due = now
        self._unsettle()
        if link.ready:
            link.lost_at = 0.0
            link.last_byte = max(link.last_byte, now)
            if link.health.standing is Standing.PROBING:
                link.ping(now)
            for part in list(link.parts.values()):
                part.retry_at = 0.0
                self._posting.post(part)
        elif not link.lost_at:
            link.lost_at = now
            if link.incarnation:
                self._strike(link, now, link.cause)

    def answered(self, part: Part, reply_bytes: int, service_us: int, alone: bool) -> None:
        now, link, flight = self._clock(), part.link, part.flight
        times = self._posting.times.of(link.node)
        times.answered(part.expected, now - part.begun)
        if alone:
            seconds = max(now - part.posted - service_us * 1e-6, 0.0)
            size = len(part.request()[3]) + reply_bytes
            times.carried(seconds, size)
            if part.node >= 0:
                flight.pace.timed(part.node, seconds, size)
        link.health = health.proven(health.heard(link.health, now), now)
        if self.unwell or isinstance(part, Deputy):
            self.rank()

    def overdue(self, part: Part, service_us: int) -> None:
        nodes, node = part.flight.pace.nodes, part.link.node
        if service_us and node in nodes:
            pace = part.flight.pace
            pace.overdue(nodes.index(node), part.pairs, service_us * 1e-6, self._clock())
        self.rank()

    def not_served(self, part: Part, error: MoemeshError, later: bool) -> None:
        now, link = self._clock(), part.link
        part.failure = error
        part.refuse(link.node, math.inf)
        if isinstance(part, Deputy):
            if part.principal is None:
                self._strike(link, now, str(error))
            else:
                part.principal.refuse(link.node, now + RETRY_S if later else math.inf)
                self.unwell = self.unwell or later
            self._withdraw(part)
            if part.principal is not None:
                self._if_all_refuse(part.principal)
            return
        if later or self._roster.mending or self._roster.posted:
            part.retry_at = now + RETRY_S
            self.unwell = True
        self._rescue.cover(self._roster, part)
        self._if_all_refuse(part)

    def _if_all_refuse(self, part: Part) -> None:
        """Whoever could compute the rows has said that it cannot, and nobody asked to be asked later."""
        if part.failure is not None and not (
            part.covered or part.done or part.retry_at or part.may_ask_again
        ):
            part.flight.error = part.flight.error or part.failure

    def _judge(self, link: Link, now: float) -> None:
        """What silence says of a node."""
        before = link.health
        if link.last_byte > before.since:
            link.health = health.heard(link.health, now)
        link.health = health.due(link.health, now)
        probing = link.health.standing is Standing.PROBING
        if not link.ready:
            return
        if probing and before.standing is not Standing.PROBING:
            link.ping(now)
        if not link.parts and not (probing and link.last_ping > link.last_byte):
            return
        begin = max([link.last_byte, *[part.since for part in link.parts.values() if part.asked][:1]])
        pinged = link.last_ping > begin
        if pinged and now - link.last_ping >= SILENT_S - PING_AFTER_S and now - begin >= SILENT_S:
            self._strike(link, now, "it is silent")
            if probing:
                link.lose("it does not answer a probe")
        elif now - begin >= PING_AFTER_S:
            link.health = health.doubted(link.health, now)
            if not pinged:
                link.ping(now)
            self._due(max(begin + SILENT_S, link.last_ping + SILENT_S - PING_AFTER_S))
        else:
            self._due(begin + PING_AFTER_S)

    def _strike(self, link: Link, now: float, why: str) -> None:
        """Suspend a node, and have others compute what it owes."""
        before, link.health = link.health, health.struck(link.health, now)
        if link.health is not before:
            self._counters.strikes += 1
            held = link.health.until - now
            log.warning(
                "node %s is suspended for %.1f s, strike %d: %s", link.node, held, link.health.strikes, why
            )
        self.rank()
        for part in list(link.parts.values()):
            if isinstance(part, Deputy):
                self._withdraw(part)
            elif link.parts.get(part.key) is part:
                self._rescue.cover(self._roster, part)

    def _withdraw(self, deputy: Deputy) -> None:
        deputy.withdraw()
        principal = deputy.principal
        if principal is not None and not principal.done:
            self._rescue.cover(self._roster, principal)

    def _check(self, part: Part, now: float) -> None:
        """Retry, replace or fail one part whose reply is not in."""
        link = part.link
        part.forgive(now)
        if part.covered:
            return
        if now >= part.late_at and link.last_byte < now and not part.receiving:
            part.late_at = part.hedge_at = float("inf")
            self._strike(link, now, f"layer {part.call[1]} took longer than it may")
        elif now >= part.hedge_at and not isinstance(part, Deputy):
            part.hedge_at = float("inf")
            if not part.receiving:
                self._rescue.hedge(self._roster, part)
        if isinstance(part, Deputy) or part.done or part.covered:
            return
        if rank_of(link) and self._rescue.cover(self._roster, part):
            return
        self._give_up(part, now)
        if part.retry_at:
            self.unwell = True
            if now >= part.retry_at and link.ready:
                part.retry_at = 0.0
                self._posting.post(part)
        self._due(min(part.hedge_at, part.late_at))

    def _give_up(self, part: Part, now: float) -> None:
        """Fail the call if nobody is left to wait for, or has been waited for long enough."""
        link, flight = part.link, part.flight
        since = part.since if part.failure is not None else max(part.since, link.last_heard)
        limit = MEND_S
        if not self._roster.mending:  # a load that has just ended is no reason to give up at once
            since, limit = max(since, self._mended), self._deadline_s
        if link.refusal is not None:
            flight.error = flight.error or link.refusal
        elif now - since > limit:
            why = "it is silent" if link.ready else link.cause
            lost = NodeLost(
                f"node {link.node} at {link.address} did not answer layer {part.call[1]} within "
                f"{limit:g} s: {why}"
            )
            flight.error = flight.error or part.failure or lost

    def _due(self, when: float) -> None:
        self._posting.due = min(self._posting.due, when)

    def _report(self, now: float) -> None:
        lost = {link.node: link.incarnation for link in self._roster.links if _is_lost(link, now)}
        if lost != self.lost:
            self.lost = lost
            self.on_loss()


def _is_lost(link: Link, now: float) -> bool:
    if not link.ready:
        return link.lost_at > 0 and now - link.lost_at >= LOST_DOWN_S
    silent = not link.health.serves and rank_of(link) == AWAY
    return silent and now - link.health.since >= LOST_SILENT_S


def _nothing() -> None:
    """Nobody asked to be told."""
