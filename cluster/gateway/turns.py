"""Requests that wait for a place at a router: whose turn it is, and who is told to come back later."""

from __future__ import annotations

from cluster.config import GatewayConfig
from cluster.errors import Overloaded
from cluster.gateway.caller import time_left
from cluster.gateway.line import Full, Line, Pace, left, longest_wait, smoothed
from cluster.gateway.ticket import Ticket
from cluster.types import EngineRequest

SOONEST_RETRY_S = 0.1


class Turns:
    """The line (cluster/gateway/line.py), how fast it moves, and how long requests take once they are let in.

    leaving: a ticket that is about to end, whose place in the line counts as free.
    """

    def __init__(self, config: GatewayConfig) -> None:
        self._config = config
        self._line: Line[Ticket] = Line(config.max_queued)
        self._pace = Pace()
        self._service_s = 0.0
        """Mean time of late from being let in to the end, of requests that were completed."""

    def nobody_waits(self, leaving: Ticket | None) -> bool:
        waiting = len(self._line)
        return waiting == 0 or (waiting == 1 and leaving in self._line)

    def check(self, key: str, requests: tuple[EngineRequest, ...], leaving: Ticket | None) -> None:
        """Raises Overloaded for a request that finds no place in the line, or would wait too long in it."""
        count = len(requests)
        if (full := self._line.full(key, count, leaving)) is not None:
            raise _refused(full, self._config.max_queued, max(SOONEST_RETRY_S, self._pace.interval))
        limit_s = longest_wait(self._service_s, self._config.wait_share, self._config.max_wait_s)
        if (left_s := time_left()) is not None:
            limit_s = min(limit_s, left_s)
        ahead = self._line.ahead(key, requests[0].priority, leaving)
        wait_s = self._pace.interval * (ahead + count)
        if wait_s > limit_s:
            retry_s = max(SOONEST_RETRY_S, wait_s - limit_s)
            raise Overloaded(
                f"it would wait {wait_s:.1f} s and may {limit_s:.1f} s; try again in {retry_s:.1f} s", retry_s
            )

    def enter(self, ticket: Ticket) -> None:
        self._line.push(
            ticket,
            ticket.owner.id,
            tokens=sum(len(each.prompt_ids) + each.sampling.max_tokens for each in ticket.requests),
            sequences=len(ticket.requests),
            priority=ticket.requests[0].priority,
        )

    def next(self) -> Ticket | None:
        """Whose turn it is; None if nobody waits."""
        return self._line.first()

    def let_in(self, ticket: Ticket, now: float) -> None:
        """The next one has its turn. now: seconds, monotonic."""
        self._line.let_in(ticket)
        self._pace = left(self._pace, now, len(ticket.requests), waiting=len(self._line) > 0)

    def drop(self, ticket: Ticket) -> None:
        """It waits no more, if it did."""
        self._line.drop(ticket)

    def completed(self, seconds: float) -> None:
        """A request has come to its end, so long after it was let in."""
        self._service_s = smoothed(self._service_s, seconds)


def _refused(full: Full, most: int, retry_s: float) -> Overloaded:
    """most: sequences that may wait."""
    if full.own:
        why = (
            f"this key has {full.waiting} sequences waiting and {full.free} places are left; "
            "a key may not fill more of them than it leaves to others"
        )
    else:
        why = f"{full.waiting} sequences wait here and {most} may"
    return Overloaded(f"{why}; try again in {retry_s:.1f} s", retry_s)
