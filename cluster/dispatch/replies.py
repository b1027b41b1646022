"""Replies of expert nodes: which debt each one pays, and where its rows go.

A reply's header is matched against what the node owes before a buffer is chosen for its rows, so that a late
duplicate cannot touch a newer step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cluster.dispatch.flight import Counters, Part
from cluster.dispatch.frames import Frame
from cluster.dispatch.kinds import Kind
from cluster.dispatch.link import Link
from cluster.errors import MoemeshError, Overloaded, ProtocolError, Unavailable, error_from_wire

_RESULT = Kind.RESULT


class Replies:
    """Takes the frames of links one by one; used by the exchange's thread.

    router: incarnation of the router that is answered. try_later: called with a part that its node could not
    serve yet, and why. now: when the sockets were last looked at, on the exchange's clock.
    """

    def __init__(
        self, router: int, counters: Counters, try_later: Callable[[Part, MoemeshError], None]
    ) -> None:
        self.now = 0.0
        self._router = router
        self._counters = counters
        self._try_later = try_later

    def _match(self, link: Link, header: Any) -> Part | None:
        """The part that a reply answers; None for a reply to something that is over."""
        try:
            router, node, step, layer, micro_batch, attempt = header[:6]
        except (TypeError, ValueError) as error:
            raise ProtocolError(f"a reply without its numbers: {error}") from error
        part = link.parts.get((step, layer, micro_batch))
        if part is None or attempt != part.attempt or router != self._router or node != link.incarnation:
            self._counters.stale += 1
            return None
        return part

    def buffer_for(self, link: Link, kind: Kind, header: Any, count: int) -> tuple[memoryview, Part] | None:
        part = self._match(link, header) if kind is _RESULT else None
        if part is None:
            return None
        if part.receiving:  # a duplicate; the frames of one read are decoded before the first is handled
            self._counters.stale += 1
            return None
        region = part.flight.slot.region(part.node)
        if len(region) != count:
            raise ProtocolError(f"{count} bytes of results where {len(region)} were asked for")
        part.receiving = True
        return region, part

    def receive(self, link: Link, frame: Frame) -> None:
        kind, header = frame.kind, frame.header
        counters = self._counters
        if kind is _RESULT:
            part = frame.context
            if part is None:
                raise ProtocolError("a RESULT without rows")
            counters.received(frame.overhead, len(frame.payload))
            link.load[:] = header[8:10]
            if part.posted and len(link.parts) == 1 and not header[8]:  # it waited for nobody there
                self._time(part, len(frame.payload), header[9])
            if part.flight.error is None:  # else the call is over
                del link.parts[part.call]
                part.flight.left -= 1
        elif kind is Kind.NOT_HERE or kind is Kind.FAULT:
            counters.received(frame.overhead, 0)
            part = self._match(link, header)
            if part is None:
                return
            if kind is Kind.FAULT:
                self._fault(part, str(header[7]), str(header[8]))
            else:
                self._not_here(part, header[6])
        elif kind is not Kind.PONG:
            raise ProtocolError(f"a {kind.name} frame where a reply was expected")

    def _time(self, part: Part, reply_bytes: int, service_us: int) -> None:
        """A round trip has ended with what the last look at the sockets brought."""
        seconds = self.now - part.posted - service_us * 1e-6
        request_bytes = len(part.flight.slot.request(part.node)[3])
        part.flight.pace.timed(part.node, max(seconds, 0.0), request_bytes + reply_bytes)

    def _not_here(self, part: Part, version: int) -> None:
        link, flight = part.link, part.flight
        error = Unavailable(
            f"node {link.node} does not hold the experts of layer {part.call[1]} that table {flight.table} "
            f"gives it; it has loaded table {version}"
        )
        if version < flight.table:
            self._try_later(part, error)
        else:
            flight.error = error

    def _fault(self, part: Part, name: str, message: str) -> None:
        error = error_from_wire(name, f"node {part.link.node}: {message}")
        if isinstance(error, Overloaded):
            self._try_later(part, error)
        else:
            part.flight.error = error
