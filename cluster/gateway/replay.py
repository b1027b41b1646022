"""Requests whose router was lost, until another one goes on with them.

A prompt and the tokens emitted since have the same next token on every router, greedy or sampled.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cluster.errors import MoemeshError, RouterLost, Unavailable
from cluster.gateway.meter import Meter
from cluster.gateway.routers import RouterLink
from cluster.gateway.ticket import Ticket
from cluster.types import RouterId

log = logging.getLogger(__name__)

MOST_LOSSES = 3
"""Routers that a request may lose in a row without a token: it may be what ends them."""

AGAIN_S = 0.5
"""Until a router that refused one is given another: its line is full, or it is not ready yet."""


@dataclass(frozen=True, slots=True)
class Losses:
    """in_row: routers that a request has lost without a token between two of them; tokens: it had then."""

    in_row: int = 0
    tokens: int = 0

    @property
    def too_many(self) -> bool:
        return self.in_row > MOST_LOSSES


def one_more(losses: Losses, tokens: int) -> Losses:
    """A router was lost that computed a request which has so many tokens."""
    fresh = tokens > losses.tokens
    return Losses(1 if fresh else losses.in_row + 1, tokens)


@dataclass(frozen=True, slots=True)
class _Wait:
    """timer: ends it. again: a router refused it since the loss, so it has been counted."""

    timer: asyncio.TimerHandle
    again: bool


class Replays:
    """Those that wait, first come first served. Used on the gateway's loop.

    window_s: for how long after a loss one may wait; 0 lets none. They had their turn: they are ahead of the
    line, and nobody is charged for them again. One that a router refuses waits on, for another or for that
    one later. on_place: called when a router that refused one may be asked again.
    """

    def __init__(self, window_s: float, meter: Meter, on_place: Callable[[], None]) -> None:
        self._window_s = window_s
        self._meter = meter
        self._on_place = on_place
        self._losses: dict[Ticket, Losses] = {}
        self._until: dict[Ticket, float] = {}
        self._waiting: dict[Ticket, _Wait] = {}
        self._full: dict[RouterLink, asyncio.TimerHandle] = {}

    def lost(self, router: RouterId, tickets: Sequence[Ticket]) -> None:
        """These were there and have not ended. Each waits, or fails: after too many losses, or without a
        window."""
        if tickets:
            log.warning("router %s was lost while it computed %d requests", router, len(tickets))
        for ticket in tickets:
            ticket.leave_router()
            tokens = sum(mailbox.received for mailbox in ticket.mailboxes)
            losses = self._losses[ticket] = one_more(self._losses.get(ticket, Losses()), tokens)
            if losses.too_many:
                ticket.fail(_too_many(losses))
            elif not self._window_s:
                ticket.fail(Unavailable(f"the router ({router}) was lost; send the request again"))
            else:
                self._until[ticket] = asyncio.get_running_loop().time() + self._window_s
                self._wait(ticket, _nobody(self._window_s))

    def refused(self, router: RouterLink, ticket: Ticket, error: MoemeshError) -> bool:
        """The router would not go on with it. True: it waits. False: it had lost no router, or its time is
        over."""
        loop = asyncio.get_running_loop()
        if loop.time() >= self._until.get(ticket, float("-inf")):
            return False
        ticket.leave_router()
        self._wait(ticket, error, again=True)
        if router not in self._full:
            self._full[router] = loop.call_later(AGAIN_S, self._free, router)
        return True

    def may_ask(self, router: RouterLink) -> bool:
        """False for a moment after it refused one."""
        return router not in self._full

    def first(self) -> Ticket | None:
        """Who is next; None if nobody waits."""
        return next(iter(self._waiting), None)

    def let_in(self, ticket: Ticket) -> None:
        """A router goes on with it. It must wait here."""
        wait = self._waiting.pop(ticket)
        wait.timer.cancel()
        if not wait.again:
            self._meter.replayed += sum(not mailbox.ended for mailbox in ticket.mailboxes)

    def drop(self, ticket: Ticket) -> None:
        """It is not wanted any more, here or at its router. Twice is fine."""
        self._losses.pop(ticket, None)
        self._until.pop(ticket, None)
        if (wait := self._waiting.pop(ticket, None)) is not None:
            wait.timer.cancel()

    def close(self) -> None:
        """The gateway stops: from now on whoever loses a router ends."""
        self._window_s = 0.0
        self._until.clear()
        for router in list(self._full):
            self._full.pop(router).cancel()
        for ticket in list(self._waiting):
            self._waiting.pop(ticket).timer.cancel()
            ticket.fail(Unavailable("the gateway stops, and no router goes on with the request"))

    def _wait(self, ticket: Ticket, error: MoemeshError, again: bool = False) -> None:
        """error: what it ends with when its time is over."""
        loop = asyncio.get_running_loop()
        self._waiting[ticket] = _Wait(loop.call_at(self._until[ticket], self._give_up, ticket, error), again)

    def _give_up(self, ticket: Ticket, error: MoemeshError) -> None:
        del self._waiting[ticket]
        ticket.fail(error)

    def _free(self, router: RouterLink) -> None:
        del self._full[router]
        self._on_place()


def _nobody(window_s: float) -> MoemeshError:
    return Unavailable(
        f"the router was lost, and no other was there within {window_s:g} s; send the request again"
    )


def _too_many(losses: Losses) -> MoemeshError:
    return RouterLost(
        f"{losses.in_row} routers were lost in a row while they computed this request, without a token "
        "between; it is not given to another, since it may be the reason"
    )
