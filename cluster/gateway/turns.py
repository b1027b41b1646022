"""Requests that wait for a place at a router: whose turn it is, and who is told to come back later."""

from __future__ import annotations

from cluster.config import GatewayConfig
from cluster.errors import Overloaded
from cluster.gateway.caller import time_left
from cluster.gateway.line import Full, Line, longest_wait, turn_every
from cluster.gateway.meter import Meter
from cluster.gateway.ticket import Ticket

SOONEST_RETRY_S = 0.1


class Turns:
    """The line (cluster/gateway/line.py) and who may stand in it.

    meter: knows how long sequences take once they are let in. leaving: a ticket that is about to end, whose
    place in the line counts as free.
    """

    def __init__(self, config: GatewayConfig, meter: Meter) -> None:
        self._config, self._meter = config, meter
        self._line: Line[Ticket] = Line(config.max_queued)

    def nobody_waits(self, leaving: Ticket | None) -> bool:
        waiting = len(self._line)
        return waiting == 0 or (waiting == 1 and leaving in self._line)

    def check(self, key: str, count: int, priority: int, places: int, leaving: Ticket | None) -> None:
        """Raises Overloaded for `count` sequences that find no place in the line, or would wait too long.
        places: of all routers together."""
        service_s = self._meter.service_s
        interval = turn_every(service_s, places)
        if (full := self._line.full(key, count, leaving)) is not None:
            raise _refused(full, self._config.max_queued, max(SOONEST_RETRY_S, interval))
        limit_s = longest_wait(service_s, self._config.wait_share, self._config.max_wait_s)
        if (left_s := time_left()) is not None:
            limit_s = min(limit_s, left_s)
        ahead = self._line.ahead(key, priority, leaving)
        wait_s = interval * (ahead + count)
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

    def let_in(self, ticket: Ticket) -> None:
        """The next one has its turn."""
        self._line.let_in(ticket)

    def drop(self, ticket: Ticket) -> None:
        """It waits no more, if it did."""
        self._line.drop(ticket)


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
