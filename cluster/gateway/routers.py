"""The gateway's side of the routers' front door: one connection a router, many requests on each.

Everything here runs on the gateway's event loop, so nothing needs a lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Callable

from cluster.dispatch.aio import FrameStream
from cluster.dispatch.frames import Header
from cluster.dispatch.handshake import Identity, error_of
from cluster.dispatch.kinds import Kind
from cluster.dispatch.requests import Entry, Payload, pack_request, unpack_alternatives
from cluster.errors import MoemeshError, Overloaded, ProtocolError, Unavailable, error_from_wire
from cluster.gateway.mailbox import End, Mailbox
from cluster.gateway.pulse import BEAT_S, SILENT_BEATS, Pulse, beat
from cluster.types import EngineRequest, RequestId, RouterId, SamplingParams

log = logging.getLogger(__name__)

RECONNECT_FIRST_S = 0.05
RECONNECT_MOST_S = 1.0

PROBE = EngineRequest(RequestId("probe"), (0,), SamplingParams(max_tokens=1))
PROBE_NUMBER = 0
"""Requests are numbered from 1."""


class RouterLink:
    """One router: connects, connects again, and takes every event to the mailbox it is for.

    A router that says nothing for a second counts as lost (cluster/gateway/pulse.py). Of one that was lost
    nothing is read any more, so that no late event reaches a mailbox for which another router has begun.

    on_lost: called with the link when it has broken; `outstanding` is empty then, and the mailboxes go on.
    on_refused: called with the link, a request's number and the error when the router says that it has no
    place or is not there yet; returns whether the request goes on all the same, so that its reader is not
    told.
    on_change: called when it has connected, was lost, or has ended requests.
    """

    def __init__(
        self,
        name: RouterId,
        address: str,
        identity: Identity,
        on_lost: Callable[[RouterLink], None],
        on_refused: Callable[[RouterLink, int, MoemeshError], bool],
        on_change: Callable[[], None],
    ) -> None:
        self.name = name
        self.address = address
        self.outstanding: dict[int, Mailbox] = {}
        self._identity = identity
        self._on_lost = on_lost
        self._on_refused = on_refused
        self._on_change = on_change
        self._stream: FrameStream | None = None
        # The front door's frames must keep their order, and whoever sends one cannot wait.
        self._outbox: asyncio.Queue[tuple[Kind, Header, bytes]] = asyncio.Queue()
        self.connected = False
        self._numbers = itertools.count(1)
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"router-{name}")

    def submit(self, request: EngineRequest, mailbox: Mailbox) -> int:
        """Only while connected. Returns the request's number on this link; its events go to `mailbox`."""
        number = next(self._numbers)
        self._pass_on(number, request, mailbox)
        return number

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
        self._post(Kind.SUBMIT, *pack_request(number, request))

    def release(self, number: int) -> None:
        """The client is gone or has everything. A request that still runs is aborted at once."""
        if self.outstanding.pop(number, None) is not None and self.connected:
            self._post(Kind.ABORT, {"n": number}, b"")

    def _post(self, kind: Kind, header: Header, payload: bytes) -> None:
        """At once if nothing waits: its turn of the loop would be a part of the time to a first token."""
        sent = False
        if self._stream is not None and self._outbox.empty():
            with contextlib.suppress(MoemeshError):  # what cannot be sent ends the link, in `_send`
                sent = self._stream.send_now(kind, header, payload)
        if not sent:
            self._outbox.put_nowait((kind, header, payload))

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
        self._stream, self._outbox = stream, asyncio.Queue()
        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(self._send(stream)), loop.create_task(self._watch(stream))]
        self._on_change()
        try:
            while True:
                frame = await stream.recv()
                if frame.kind is Kind.PONG:
                    continue
                if frame.kind is Kind.ERROR:
                    raise error_of(frame.header)
                if frame.kind is not Kind.EVENTS:
                    raise ProtocolError(f"router {self.name} sent {frame.kind.name}, not EVENTS")
                try:
                    self._deliver(frame.header["e"], frame.payload)
                except (LookupError, TypeError, ValueError, OverflowError) as error:
                    raise ProtocolError(f"router {self.name} sent broken events: {error!r}") from error
        finally:
            for task in tasks:
                task.cancel()
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

    async def _watch(self, stream: FrameStream) -> None:
        """Ask the router whether it is there, and end the connection when it does not answer."""
        pulse = Pulse(stream.received)
        while not pulse.silent:
            self._post(Kind.PING, {}, b"")
            await asyncio.sleep(BEAT_S)
            pulse = beat(pulse, stream.received)
        await stream.close(Unavailable(f"it was silent for {SILENT_BEATS * BEAT_S:g} s"))

    def _lost(self) -> None:
        self.connected = False
        self._stream = None
        lost, self.outstanding = self.outstanding, {}
        if (probe := lost.get(PROBE_NUMBER)) is not None:
            probe.fail(Unavailable(f"the connection to router {self.name} was lost"))
        self._on_lost(self)
        self._on_change()

    def _deliver(self, events: list[Entry], data: memoryview) -> None:
        """One step of the router: the tokens of all its streams of this gateway."""
        payload, ended = Payload(data), False
        # A first token is waited for most, so its reader is woken before the others of the step.
        for event in sorted(events, key=self._goes_on):
            number, kind = event[0], event[1]
            mailbox = self.outstanding.get(number)
            # A broken event raises before its mailbox is let go, so that its reader hears of it.
            if kind == "t":
                if mailbox is not None:
                    mailbox.token(event[2], event[3], unpack_alternatives(event[4]) if len(event) > 4 else ())
                continue
            end = self._end(event, payload)  # read even if nobody wants it: the next one's values follow
            if mailbox is None:
                continue  # released: the abort and this event crossed
            del self.outstanding[number]
            ended = True
            if isinstance(end, End):
                mailbox.finish(end)
            elif not (_refuses(end) and self._on_refused(self, number, end)):
                mailbox.fail(end)
        if ended:
            self._on_change()

    def _goes_on(self, event: Entry) -> bool:
        """False for a first token. Events with a payload keep their order, and so do those of one request."""
        mailbox = self.outstanding.get(event[0]) if event[1] == "t" else None
        return mailbox is None or mailbox.started

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


def _refuses(error: MoemeshError) -> bool:
    """Whether a router has no place or is not ready. A lost node (NodeLost) is not its own trouble."""
    return type(error) in (Overloaded, Unavailable)
