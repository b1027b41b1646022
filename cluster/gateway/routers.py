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
from typing import Any

import numpy as np

from cluster.dispatch.aio import FrameStream
from cluster.dispatch.frames import Header
from cluster.dispatch.handshake import Identity, error_of
from cluster.dispatch.kinds import Kind
from cluster.errors import MoemeshError, Overloaded, ProtocolError, Unavailable, error_from_wire
from cluster.gateway.mailbox import End, Mailbox
from cluster.types import EngineRequest, RequestId, RouterId

log = logging.getLogger(__name__)

RECONNECT_FIRST_S = 0.05
RECONNECT_MOST_S = 1.0
RETRY_AFTER_S = 1.0


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

    def submit(self, request: EngineRequest) -> tuple[int, Mailbox]:
        """Only while connected. Returns the request's number on this link and where its events arrive."""
        assert self.connected
        number = next(self._numbers)
        mailbox = Mailbox(request.request_id, request.sampling.max_tokens)
        self.outstanding[number] = mailbox
        header = {
            "n": number,
            "id": request.request_id,
            "kind": request.kind,
            "tier": request.tier,
            "tenant": request.tenant,
            "sampling": dataclasses.asdict(request.sampling),
        }
        prompt = np.asarray(request.prompt_ids, "<i4").tobytes()
        self._outbox.put_nowait((Kind.SUBMIT, header, prompt))
        return number, mailbox

    def release(self, number: int) -> None:
        """The client is gone or has everything. A request that still runs is aborted at once."""
        mailbox = self.outstanding.pop(number, None)
        if mailbox is not None and self.connected:
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

    def _deliver(self, events: list[list[Any]], payload: memoryview) -> None:
        """One step of the router: the tokens of all its streams of this gateway."""
        scored = 0
        for event in events:
            number, kind = event[0], event[1]
            mailbox = self.outstanding.get(number)
            if kind == "s":
                logprobs = np.frombuffer(payload, "<f4", count=event[2], offset=scored)
                scored += logprobs.nbytes
            if mailbox is None:
                continue  # released: the abort and this event crossed
            mailbox.started = True
            # A broken event raises before its mailbox is let go, so that its reader hears of it.
            if kind == "t":
                mailbox.token(event[2], event[3])
                continue
            if kind == "f":
                mailbox.finish(End(event[2], event[3], event[4]))
            elif kind == "s":
                mailbox.finish(End("length", logprobs.size + 1, 0, logprobs))
            elif kind == "x":
                mailbox.fail(error_from_wire(event[2], event[3]))
            else:
                raise ProtocolError(f"router {self.name} sent an event of kind {kind!r}")
            del self.outstanding[number]


@dataclasses.dataclass(frozen=True, slots=True)
class Ticket:
    """A submitted request: read `mailbox`, then give the ticket to `RouterPool.release`."""

    mailbox: Mailbox
    link: RouterLink
    number: int
    prompt_tokens: int


class RouterPool:
    """The routers this gateway knows. Requests go to the connected one with the fewest outstanding.

    on_ready: called with True when a first router can take requests, with False when none can.
    """

    def __init__(self, identity: Identity, max_queued: int, on_ready: Callable[[bool], None]) -> None:
        self._identity = identity
        self._max_queued = max_queued
        self._on_ready = on_ready
        self._links: dict[RouterId, RouterLink] = {}
        self._tickets: dict[RequestId, Ticket] = {}
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
    def queued(self) -> int:
        """Requests of which no router has sent anything yet."""
        return sum(not ticket.mailbox.started for ticket in self._tickets.values())

    def update(self, routers: Mapping[RouterId, str]) -> None:
        """Connect to new routers and new addresses, drop those no longer named."""
        for name, link in list(self._links.items()):
            if routers.get(name) != link.address:
                self._close(self._links.pop(name))
        for name, address in routers.items():
            if name not in self._links:
                self._links[name] = RouterLink(name, address, self._identity, self._changed)
        self._changed()

    def submit(self, request: EngineRequest) -> Ticket:
        """Raises Overloaded when the queue is full, Unavailable when no router is connected."""
        if self.queued >= self._max_queued:
            raise Overloaded(
                f"{self._max_queued} requests are waiting already; try again in {RETRY_AFTER_S:g} s",
                RETRY_AFTER_S,
            )
        links = [link for link in self._links.values() if link.connected]
        if not links:
            raise Unavailable("no router is connected; try again when the cluster is ready")
        link = min(links, key=lambda link: len(link.outstanding))
        number, mailbox = link.submit(request)
        ticket = Ticket(mailbox, link, number, len(request.prompt_ids))
        self._tickets[request.request_id] = ticket
        return ticket

    def release(self, ticket: Ticket) -> None:
        """Give up whatever the request still holds here and at its router. Twice is fine."""
        ticket.link.release(ticket.number)
        if self._tickets.get(ticket.mailbox.request_id) is ticket:
            del self._tickets[ticket.mailbox.request_id]

    def is_running(self, request_id: RequestId) -> bool:
        return request_id in self._tickets

    def abort(self, request_id: RequestId) -> bool:
        """End a request; its reader sees reason "aborted". False if none of this name is running."""
        ticket = self._tickets.get(request_id)
        if ticket is None or ticket.mailbox.ended:
            return False
        ticket.link.release(ticket.number)
        ticket.mailbox.finish(End("aborted", ticket.prompt_tokens, ticket.mailbox.received))
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
