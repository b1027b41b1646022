"""The gateway's side of the routers' front door: one connection a router, many requests on each.

Everything here runs on the gateway's event loop, so nothing needs a lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import logging
from collections.abc import Callable, Mapping

from cluster.dispatch.aio import FrameStream
from cluster.dispatch.frames import Header
from cluster.dispatch.handshake import Identity, error_of
from cluster.dispatch.kinds import Kind
from cluster.dispatch.requests import Entry, Payload, pack_request, unpack_alternatives
from cluster.errors import MoemeshError, Overloaded, ProtocolError, Unavailable, error_from_wire
from cluster.gateway.caller import Caller, caller
from cluster.gateway.mailbox import Bell, End, Mailbox
from cluster.gateway.meter import Meter, RequestMeter
from cluster.gateway.security.limits import KeyLimits
from cluster.types import EngineRequest, FinishReason, RequestId, RouterId, SamplingParams

log = logging.getLogger(__name__)

RECONNECT_FIRST_S = 0.05
RECONNECT_MOST_S = 1.0
RETRY_AFTER_S = 1.0

PROBE = EngineRequest(RequestId("probe"), (0,), SamplingParams(max_tokens=1))
PROBE_NUMBER = 0
"""Requests are numbered from 1."""


class RouterLink:
    """One router: connects, connects again, and takes every event to the mailbox it is for."""

    def __init__(
        self, name: RouterId, address: str, identity: Identity, on_change: Callable[[], None]
    ) -> None:
        self.name = name
        self.address = address
        self.outstanding: dict[int, Mailbox] = {}
        self._identity = identity
        self._on_change = on_change
        # The front door's frames must keep their order, and whoever sends one cannot wait.
        self._outbox: asyncio.Queue[tuple[Kind, Header, bytes]] = asyncio.Queue()
        self.connected = False
        self._numbers = itertools.count(1)
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"router-{name}")

    def submit(self, request: EngineRequest, bell: Bell, meter: RequestMeter) -> tuple[int, Mailbox]:
        """Only while connected. Returns the request's number on this link and where its events arrive."""
        number = next(self._numbers)
        mailbox = Mailbox(request.request_id, request.sampling.max_tokens, bell, meter)
        self._pass_on(number, request, mailbox)
        return number, mailbox

    async def probe(self) -> None:
        """Have one token generated, which nobody counts. Raises what a request would."""
        mailbox = Mailbox(PROBE.request_id, PROBE.sampling.max_tokens)
        self._pass_on(PROBE_NUMBER, PROBE, mailbox)
        try:
            await mailbox.take()
        finally:
            self.release(PROBE_NUMBER)

    def _pass_on(self, number: int, request: EngineRequest, mailbox: Mailbox) -> None:
        assert self.connected
        self.outstanding[number] = mailbox
        self._outbox.put_nowait((Kind.SUBMIT, *pack_request(number, request)))

    def release(self, number: int) -> None:
        """The client is gone or has everything. A request that still runs is aborted at once."""
        if self.outstanding.pop(number, None) is not None and self.connected:
            self._outbox.put_nowait((Kind.ABORT, {"n": number}, b""))

    async def close(self) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task

    async def _run(self) -> None:
        delay = RECONNECT_FIRST_S
        while True:
            try:
                async with await FrameStream.open(self.address, identity=self._identity) as stream:
                    delay = RECONNECT_FIRST_S
                    await self._serve(stream)
            except MoemeshError as error:
                # Said once an outage, not once a second.
                level = logging.WARNING if delay == RECONNECT_FIRST_S else logging.DEBUG
                log.log(level, "router %s at %s: %s", self.name, self.address, error)
            except Exception:
                # A bug. Its requests have been ended (_lost); connecting again beats a router never used.
                log.exception("the link to router %s failed; it connects again", self.name)
            await asyncio.sleep(delay)
            delay = min(2 * delay, RECONNECT_MOST_S)

    async def _serve(self, stream: FrameStream) -> None:
        self.connected = True
        self._outbox = asyncio.Queue()
        sender = asyncio.get_running_loop().create_task(self._send(stream))
        self._on_change()
        try:
            while True:
                frame = await stream.recv()
                if frame.kind is Kind.ERROR:
                    raise error_of(frame.header)
                if frame.kind is not Kind.EVENTS:
                    raise ProtocolError(f"router {self.name} sent {frame.kind.name}, not EVENTS")
                try:
                    self._deliver(frame.header["e"], frame.payload)
                except (LookupError, TypeError, ValueError) as error:
                    raise ProtocolError(f"router {self.name} sent broken events: {error!r}") from error
        finally:
            sender.cancel()
            self._lost()

    async def _send(self, stream: FrameStream) -> None:
        """Ends with the connection, whichever breaks first: nobody waits for what cannot be sent."""
        try:
            while True:
                kind, header, payload = await self._outbox.get()
                await stream.send(kind, header, payload)
        except MoemeshError as error:
            log.warning("router %s cannot be sent to: %s", self.name, error)
        finally:
            await stream.close()

    def _lost(self) -> None:
        self.connected = False
        lost, self.outstanding = self.outstanding, {}
        for mailbox in lost.values():
            mailbox.fail(
                Unavailable(f"the connection to router {self.name} was lost; send the request again")
            )
        self._on_change()

    def _deliver(self, events: list[Entry], data: memoryview) -> None:
        """One step of the router: the tokens of all its streams of this gateway."""
        payload = Payload(data)
        for event in events:
            number, kind = event[0], event[1]
            mailbox = self.outstanding.get(number)
            # A broken event raises before its mailbox is let go, so that its reader hears of it.
            if kind == "t":
                if mailbox is not None:
                    mailbox.token(event[2], event[3], unpack_alternatives(event[4]) if event[4:] else ())
                continue
            end = self._end(event, payload)  # read even if nobody wants it: the next one's values follow
            if mailbox is None:
                continue  # released: the abort and this event crossed
            if isinstance(end, End):
                mailbox.finish(end)
            else:
                mailbox.fail(end)
            del self.outstanding[number]

    def _end(self, event: Entry, payload: Payload) -> End | MoemeshError:
        match event[1]:
            case "f":
                return End(event[2], event[3], event[4])
            case "s":
                logprobs = payload.floats(event[2])
                return End("length", len(logprobs) + 1, 0, logprobs, payload.alternatives(event[2], event[3]))
            case "e":
                return End("length", event[3], 0, payload.floats(event[2]))
            case "x":
                return error_from_wire(event[2], event[3])
        raise ProtocolError(f"router {self.name} sent an event of kind {event[1]!r}")


@dataclasses.dataclass(frozen=True, slots=True)
class Ticket:
    """A submitted request: read its mailboxes, then give the ticket to `RouterPool.release`.

    mailboxes, numbers: one a sequence; all are at one router and share one bell.
    owner: whose key it came with; nobody else can abort it or take its place.
    """

    owner: Caller
    request_id: RequestId
    mailboxes: tuple[Mailbox, ...]
    link: RouterLink
    numbers: tuple[int, ...]
    prompt_tokens: int

    @property
    def bell(self) -> Bell:
        return self.mailboxes[0].bell

    @property
    def ended(self) -> bool:
        return all(mailbox.ended for mailbox in self.mailboxes)

    def drop(self, place: int, reason: FinishReason | None = None) -> None:
        """One sequence has given all that is wanted of it: free it at its router. Twice is fine.

        reason: why it ended, if its reader knows better than the router.
        """
        self.link.release(self.numbers[place])
        self.mailboxes[place].close(reason)


class RouterPool:
    """The routers this gateway knows. Requests go to the connected one with the fewest outstanding.

    on_ready: called with True when a first router can take requests, with False when none can.
    meter: what it counts, on the gateway's clock.
    """

    def __init__(
        self,
        identity: Identity,
        max_queued: int,
        on_ready: Callable[[bool], None],
        meter: Meter | None = None,
    ) -> None:
        self.meter = meter or Meter()
        self._limits = KeyLimits(self.meter.clock)
        self._identity = identity
        self._max_queued = max_queued
        self._on_ready = on_ready
        self._links: dict[RouterId, RouterLink] = {}
        self._tickets: dict[tuple[str, RequestId], Ticket] = {}
        self._was_ready = False
        self._closing: set[asyncio.Task[None]] = set()

    @property
    def ready(self) -> bool:
        return any(link.connected for link in self._links.values())

    @property
    def connected(self) -> int:
        return sum(link.connected for link in self._links.values())

    @property
    def outstanding(self) -> int:
        return len(self._tickets)

    @property
    def sequences(self) -> int:
        """Those whose end has not come yet."""
        return sum(not mailbox.ended for ticket in self._tickets.values() for mailbox in ticket.mailboxes)

    @property
    def queued(self) -> int:
        """Sequences of which no router has sent anything yet."""
        return sum(not mailbox.started for ticket in self._tickets.values() for mailbox in ticket.mailboxes)

    def update(self, routers: Mapping[RouterId, str]) -> None:
        """Connect to new routers and new addresses, drop those no longer named."""
        for name, link in list(self._links.items()):
            if routers.get(name) != link.address:
                self._close(self._links.pop(name))
        for name, address in routers.items():
            if name not in self._links:
                self._links[name] = RouterLink(name, address, self._identity, self._changed)
        self._changed()

    def submit(self, *requests: EngineRequest) -> Ticket:
        """Sequences of one request: they share its id. All go to one router.

        Raises Overloaded when they do not fit the queue, RateLimited when the caller's key may not have them
        now, Unavailable when no router is connected.
        """
        who = caller()
        try:
            link = self._choose(len(requests))
            self._limits.enter(who)
        except MoemeshError as error:
            self.meter.refuse(type(error).__name__)
            raise
        first, bell = requests[0], Bell()
        numbers, mailboxes = zip(
            *(link.submit(each, bell, self.meter.request(len(each.prompt_ids))) for each in requests),
            strict=True,
        )
        ticket = Ticket(who, first.request_id, mailboxes, link, numbers, len(first.prompt_ids))
        if (replaced := self._tickets.get((who.id, first.request_id))) is not None:
            self._limits.leave(replaced.owner)
        self._tickets[who.id, first.request_id] = ticket
        return ticket

    async def probe(self) -> None:
        """Have a router generate one token. Raises what a request would meet."""
        await self._choose(1).probe()

    def _choose(self, sequences: int) -> RouterLink:
        if self.queued + sequences > self._max_queued:
            raise Overloaded(
                f"{self.queued} sequences wait and {self._max_queued} may; try again in {RETRY_AFTER_S:g} s",
                RETRY_AFTER_S,
            )
        links = [link for link in self._links.values() if link.connected]
        if not links:
            raise Unavailable("no router is connected; try again when the cluster is ready")
        return min(links, key=lambda link: len(link.outstanding))

    def release(self, ticket: Ticket) -> None:
        """Give up whatever the request still holds here and at its router. Twice is fine."""
        for place in range(len(ticket.numbers)):
            ticket.drop(place)
        key = (ticket.owner.id, ticket.request_id)
        if self._tickets.get(key) is ticket:
            del self._tickets[key]
            self._limits.leave(ticket.owner)
            _report(ticket)

    def is_running(self, request_id: RequestId) -> bool:
        """Whether the caller has a request of this name."""
        return (caller().id, request_id) in self._tickets

    def abort(self, request_id: RequestId) -> bool:
        """End a request of the caller's; its reader sees reason "aborted". False if none has this name."""
        ticket = self._tickets.get((caller().id, request_id))
        if ticket is None or ticket.ended:
            return False
        for place, mailbox in enumerate(ticket.mailboxes):
            mailbox.finish(End("aborted", ticket.prompt_tokens, mailbox.received))
            ticket.drop(place)
        return True

    async def close(self) -> None:
        self.update({})
        await asyncio.gather(*self._closing)

    def _close(self, link: RouterLink) -> None:
        task = asyncio.get_running_loop().create_task(link.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    def _changed(self) -> None:
        if self.ready != self._was_ready:
            self._was_ready = self.ready
            self._on_ready(self._was_ready)


def _report(ticket: Ticket) -> None:
    """One line of log a request; of its content only sizes."""
    fields = {
        "request_id": ticket.request_id,
        "key": ticket.owner.id,
        "prompt_tokens": ticket.prompt_tokens,
        "tokens": sum(mailbox.received for mailbox in ticket.mailboxes),
        "ended": ",".join(mailbox.reason for mailbox in ticket.mailboxes),
    }
    log.info("request", extra={"fields": fields})
