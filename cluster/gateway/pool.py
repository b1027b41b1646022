"""All routers of a gateway: which one computes a request, and when it is let in.

Everything here runs on the gateway's event loop, so nothing needs a lock.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from cluster.config import GatewayConfig
from cluster.dispatch.handshake import Identity
from cluster.errors import InvalidRequest, MoemeshError, RateLimited, Unavailable
from cluster.gateway.caller import caller, set_request
from cluster.gateway.mailbox import Bell, End, Mailbox
from cluster.gateway.meter import FAILED, Meter
from cluster.gateway.replay import Replays
from cluster.gateway.routers import RouterLink
from cluster.gateway.security.limits import KeyLimits
from cluster.gateway.spans import GatewaySpans
from cluster.gateway.ticket import Ticket
from cluster.gateway.turns import Turns
from cluster.gateway.windows import Windows
from cluster.types import TIERS, EngineRequest, RequestId, RouterId

log = logging.getLogger(__name__)


class RouterPool:
    """The routers this gateway knows. Requests go to the connected one with the fewest outstanding.

    A router is given as many sequences as it can run (`window`). The rest wait here, where it is decided
    whose turn it is (cluster/gateway/turns.py); a request that would wait for too long is refused at once.
    Those of a router that was lost go on at another one, ahead of all others (cluster/gateway/replay.py).

    connected: how many there are. All counts are plain numbers, which may be read from any thread.
    on_ready: called with True when a first router can take requests, with False when none can.
    meter: what it counts, on the gateway's clock.
    """

    def __init__(
        self,
        identity: Identity,
        config: GatewayConfig,
        on_ready: Callable[[bool], None],
        meter: Meter | None = None,
        spans: GatewaySpans | None = None,
    ) -> None:
        """spans: None traces no request."""
        self._spans = spans
        self.meter = meter or Meter()
        self.tiers: tuple[str, ...] = TIERS
        """Those that are offered."""
        self._limits = KeyLimits(self.meter.clock)
        self._identity = identity
        self._config = config
        self._on_ready = on_ready
        self._links: dict[RouterId, RouterLink] = {}
        self._tickets: dict[tuple[str, RequestId], Ticket] = {}
        self._turns = Turns(config, self.meter)
        self._replays = Replays(config.replay_s, self.meter, self._let_in)
        self._windows: Windows[Ticket] = Windows(config.max_resumable, self.release)
        self.connected = 0
        self._was_ready = False
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def ready(self) -> bool:
        return self.connected > 0

    @property
    def outstanding(self) -> int:
        return len(self._tickets)

    @property
    def sequences(self) -> int:
        """Those whose end has not come yet."""
        return self.meter.sequences

    @property
    def queued(self) -> int:
        """Sequences of which no router has sent anything yet."""
        return self.meter.queued

    def update(self, routers: Mapping[RouterId, str]) -> None:
        """Connect to new routers and new addresses, drop those no longer named."""
        for name, link in list(self._links.items()):
            if routers.get(name) != link.address:
                self._close(self._links.pop(name))
        for name, address in routers.items():
            if name not in self._links:
                self._links[name] = RouterLink(
                    name, address, self._identity, self._lost, self._refused, self._changed
                )
        self._changed()

    def check_place(self, samples: int, priority: int) -> None:
        """Raises what `submit` would for want of a place, whatever else is asked for: under overload nobody
        reads a prompt only to refuse it. Says nothing where requests are traced, since spans are of those
        that were read."""
        if self._spans is not None:
            return
        try:
            self._check_place(caller().id, samples, priority)
        except MoemeshError as error:
            self.meter.refuse(type(error).__name__)
            raise

    def submit(self, *requests: EngineRequest, window_s: float = 0.0, charged: bool = False) -> Ticket:
        """Sequences of one request: they share its id. All go to one router. window_s, charged: as in Ticket.

        Raises Overloaded when they do not fit the line or would wait too long in it, RateLimited when the
        caller's key may not have them now, Unavailable when no router is connected, InvalidRequest for a tier
        that is not offered, or a request of the caller's that has the same id and runs.
        """
        return self._accept(requests, window_s, None, charged)

    def replace(self, *requests: EngineRequest, window_s: float = 0.0) -> Ticket:
        """As `submit`, in place of the caller's request of the same id, if it has one: when this one has been
        accepted, that one ends, and its reader sees reason "aborted". What it holds counts as free. Raises
        what `submit` does; then that one goes on."""
        replaced = self._tickets.get((caller().id, requests[0].request_id))
        return self._accept(requests, window_s, replaced)

    @contextmanager
    def charge_once(self, parts: int) -> Iterator[bool]:
        """The caller's limits take so many requests, such as the prompts of one body, for one, until it is
        left. Yields what `submit` wants as `charged`: a single one is charged by itself. Raises RateLimited.
        """
        if parts == 1:
            yield False
            return
        who = caller()
        try:
            self._limits.enter(who)
        except RateLimited as error:
            self.meter.refuse(type(error).__name__)
            raise
        try:
            yield True
        finally:
            self._limits.leave(who)

    def _accept(
        self,
        requests: tuple[EngineRequest, ...],
        window_s: float,
        replaced: Ticket | None,
        charged: bool = False,
    ) -> Ticket:
        who = caller()
        span = None if self._spans is None else self._spans.begin(requests, who.id)
        set_request(requests[0].request_id, "" if span is None else span.trace_id)
        try:
            self._check(who.id, requests, replaced)
            if not charged:
                self._limits.enter(who, ending=replaced is not None and not replaced.charged)
        except MoemeshError as error:
            self.meter.refuse(type(error).__name__)
            if span is not None:
                span.refuse(error)
            raise
        if span is not None and span.traceparent:
            requests = tuple(dataclasses.replace(each, trace=span.traceparent) for each in requests)
        if replaced is not None:
            self._end(replaced)
            self.release(replaced)
        bell = Bell()
        mailboxes = tuple(
            Mailbox(
                each.request_id,
                each.sampling.max_tokens,
                bell,
                self.meter.request(len(each.prompt_ids)),
                keep=window_s > 0,
                known=each.emitted,
                listed=each.sampling.top_logprobs > 0,
            )
            for each in requests
        )
        ticket = Ticket(who, requests, mailboxes, window_s=window_s, span=span, charged=charged)
        self._tickets[who.id, ticket.request_id] = ticket
        self._turns.enter(ticket)
        self._let_in()
        return ticket

    def resume(self, *requests: EngineRequest, window_s: float) -> Ticket | None:
        """The caller's request of this name, if it opened a window and asked for the same tokens; whoever
        reads it now is its reader no more. None: there is no such request."""
        ticket = self._tickets.get((caller().id, requests[0].request_id))
        if ticket is None or not ticket.window_s or not ticket.same_as(requests):
            return None
        self._windows.close(ticket)
        if ticket.failed:
            self.release(ticket)
            return None
        ticket.window_s = window_s
        ticket.hand_over()
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """Its reader has gone before the end. It goes on if it opened a window, else it is released."""
        if ticket.window_s and not ticket.failed and self._known(ticket):
            self._windows.open(ticket, ticket.window_s)
        else:
            self.release(ticket)

    async def probe(self) -> None:
        """Have a router generate one token. Raises what a request would meet."""
        await self._least_busy().probe()

    def release(self, ticket: Ticket) -> None:
        """Give up whatever the request still holds here and at its router. Twice is fine."""
        self._turns.drop(ticket)
        self._replays.drop(ticket)
        self._windows.close(ticket)
        for place in range(len(ticket.mailboxes)):
            ticket.drop(place)
        if self._known(ticket):
            del self._tickets[ticket.owner.id, ticket.request_id]
            if not ticket.charged:
                self._limits.leave(ticket.owner)
            _report(ticket)
        self._let_in()

    def abort(self, request_id: RequestId) -> bool:
        """End a request of the caller's; its reader sees reason "aborted". False if none has this name."""
        ticket = self._tickets.get((caller().id, request_id))
        if ticket is None:
            return False
        running = not ticket.ended
        self._turns.drop(ticket)
        self._replays.drop(ticket)
        self._end(ticket)
        if self._windows.close(ticket):
            self.release(ticket)
        self._let_in()
        return running

    async def close(self) -> None:
        self._windows.end_all()
        self._replays.close()
        self.update({})
        await asyncio.gather(*self._closing)

    def _end(self, ticket: Ticket) -> None:
        """Before its time: its reader sees reason "aborted", unless everything has come."""
        ticket.window_s = 0.0
        for place, mailbox in enumerate(ticket.mailboxes):
            mailbox.finish(End("aborted", ticket.prompt_tokens, mailbox.received))
            ticket.drop(place)

    def _known(self, ticket: Ticket) -> bool:
        return self._tickets.get((ticket.owner.id, ticket.request_id)) is ticket

    def _check(self, key: str, requests: tuple[EngineRequest, ...], leaving: Ticket | None) -> None:
        """Raises InvalidRequest, Overloaded or Unavailable for what should not even wait. leaving: whose
        places will be free."""
        name = requests[0].request_id
        if leaving is None and (key, name) in self._tickets:
            raise InvalidRequest(f"request_id {name!r} is running; abort it first or choose another")
        if (tier := requests[0].tier) not in self.tiers:
            raise InvalidRequest(f"tier {tier!r} is not offered now; offered: {', '.join(self.tiers)}")
        self._check_place(key, len(requests), requests[0].priority, leaving)

    def _check_place(self, key: str, sequences: int, priority: int, leaving: Ticket | None = None) -> None:
        self._least_busy()
        if not self._turns.nobody_waits(leaving) or self._place_for(sequences, leaving) is None:
            places = self._config.window * len(self._there())
            self._turns.check(key, sequences, priority, places, leaving)

    def _let_in(self) -> None:
        """Whoever is next, as long as a router has a place. Those whose router was lost had one, and go on
        beyond the window of another."""
        while (ticket := self._replays.first()) is not None:
            link = min(filter(self._replays.may_ask, self._there()), key=_held, default=None)
            if link is None:
                break
            self._replays.let_in(ticket)
            ticket.let_in(link)
        while (ticket := self._turns.next()) is not None:
            link = self._place_for(len(ticket.requests))
            if link is None:
                return
            self._turns.let_in(ticket)
            ticket.let_in(link)

    def _place_for(self, sequences: int, leaving: Ticket | None = None) -> RouterLink | None:
        """A router that can run them, or has nothing else to do. leaving: whose places count as free."""

        def held(link: RouterLink) -> int:
            return len(link.outstanding) - (0 if leaving is None else leaving.held_at(link))

        link = min(self._there(), key=held, default=None)
        if link is None or (held(link) and held(link) + sequences > self._config.window):
            return None
        return link

    def _least_busy(self) -> RouterLink:
        if not (links := self._there()):
            raise Unavailable("no router is connected; try again when the cluster is ready")
        return min(links, key=_held)

    def _there(self) -> list[RouterLink]:
        return [link for link in self._links.values() if link.connected]

    def _close(self, link: RouterLink) -> None:
        task = asyncio.get_running_loop().create_task(link.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _lost(self, link: RouterLink) -> None:
        """What it was computing goes on elsewhere."""
        there = [ticket for ticket in self._tickets.values() if ticket.link is link and not ticket.ended]
        self._replays.lost(link.name, there)

    def _refused(self, link: RouterLink, number: int, error: MoemeshError) -> bool:
        """One that had begun at another router waits for a place; a new one is told."""
        there = (each for each in self._tickets.values() if each.link is link and number in each.numbers)
        ticket = next(there, None)
        return ticket is not None and self._replays.refused(link, ticket, error)

    def _changed(self) -> None:
        """A router has come or gone, or requests at one have ended."""
        self.connected = sum(link.connected for link in self._links.values())
        if self.ready != self._was_ready:
            self._was_ready = self.ready
            self._on_ready(self._was_ready)
        if not self.ready:
            self._turn_away()
        self._let_in()

    def _turn_away(self) -> None:
        """No router is left: whoever waits is told so, since nobody knows for how long."""
        while (ticket := self._turns.next()) is not None:
            self._turns.drop(ticket)
            for mailbox in ticket.mailboxes:
                mailbox.fail(Unavailable("no router is connected any more; send the request again"))


def _held(link: RouterLink) -> int:
    return len(link.outstanding)


def _report(ticket: Ticket) -> None:
    """One line of log a request, and the end of its span; of its content only sizes."""
    reasons = [mailbox.reason for mailbox in ticket.mailboxes]
    tokens = sum(mailbox.received for mailbox in ticket.mailboxes)
    if ticket.span is not None:
        ticket.span.end(tokens, reasons, failed=FAILED in reasons)
    fields = {
        "request_id": ticket.request_id,
        "key": ticket.owner.id,
        "prompt_tokens": ticket.prompt_tokens,
        "tokens": tokens,
        "ended": ",".join(reasons),
    }
    if ticket.span is not None and ticket.span.trace_id:
        fields["trace_id"] = ticket.span.trace_id
    log.info("request", extra={"fields": fields})
