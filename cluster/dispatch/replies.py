"""Replies of expert nodes: which debt each one pays, and where its rows go.

A reply's header is matched against what the node owes before a buffer is chosen for its rows, so that a late
duplicate cannot touch a newer step.
"""

from __future__ import annotations

from typing import Any, Protocol

from cluster.dispatch.flight import Counters, Part
from cluster.dispatch.frames import Frame
from cluster.dispatch.kinds import Kind
from cluster.dispatch.link import Link
from cluster.errors import MoemeshError, Overloaded, ProtocolError, Unavailable, error_from_wire

_RESULT = Kind.RESULT


class Listener(Protocol):
    """Who is told what became of requests."""

    def answered(self, part: Part, reply_bytes: int, service_us: int, alone: bool) -> None:
        """Its rows are in. alone: it waited for nobody on the node, and nothing else is owed there."""

    def overdue(self, part: Part, service_us: int) -> None:
        """Its reply has come after others had given the rows."""

    def not_served(self, part: Part, error: MoemeshError, later: bool) -> None:
        """The node cannot serve it; later: perhaps it can in a moment."""


class Replies:
    """Takes the frames of links one by one; used by the exchange's thread. router: incarnation of the router
    that is answered."""

    def __init__(self, router: int, counters: Counters, listener: Listener) -> None:
        self._router = router
        self._counters = counters
        self._listener = listener

    def _match(self, link: Link, header: Any) -> Part | None:
        """The part that a reply answers; None for a reply to something that is over."""
        try:
            router, node, step, layer, micro_batch, attempt = header[:6]
            key = (step, layer, micro_batch, attempt)
            part = link.parts.get(key)
            late = None if part is not None else link.overdue.pop(key, None)
        except (TypeError, ValueError) as error:
            raise ProtocolError(f"a reply without its numbers: {error}") from error
        if part is not None and router == self._router and node == link.incarnation:
            return part
        if late is None:
            self._counters.stale += 1
        else:
            self._counters.overdue += 1
            self._listener.overdue(late, _service_us(header))
        return None

    def buffer_for(self, link: Link, kind: Kind, header: Any, count: int) -> tuple[memoryview, Part] | None:
        part = self._match(link, header) if kind is _RESULT else None
        if part is None:
            return None
        if part.receiving:  # a duplicate; the frames of one read are decoded before the first is handled
            self._counters.stale += 1
            return None
        region = part.region()
        if len(region) != count:
            raise ProtocolError(f"{count} bytes of results where {len(region)} were asked for")
        part.receiving = True
        return region, part

    def receive(self, link: Link, frame: Frame) -> None:
        kind, header = frame.kind, frame.header
        if kind is _RESULT:
            if frame.context is None:
                raise ProtocolError("a RESULT without rows")
            self._result(link, frame, frame.context)
        elif kind is Kind.NOT_HERE or kind is Kind.FAULT:
            self._counters.received(frame.overhead, 0)
            part = self._match(link, header)
            if part is None:
                return
            if kind is Kind.FAULT:
                self._fault(part, str(header[7]), str(header[8]))
            else:
                self._not_here(part, header[6])
        elif kind is not Kind.PONG:
            raise ProtocolError(f"a {kind.name} frame where a reply was expected")

    def _result(self, link: Link, frame: Frame, part: Part) -> None:
        self._counters.received(frame.overhead, len(frame.payload))
        waiting, service_us = link.load[:] = frame.header[8:10]
        if link.parts.get(part.key) is part:
            alone = part.posted > 0 and len(link.parts) == 1 and not waiting
            part.answered()
            self._listener.answered(part, len(frame.payload), service_us, alone)
        elif link.overdue.pop(part.key, None) is not None:  # it was on its way when others were done
            self._counters.overdue += 1
            self._listener.overdue(part, service_us)

    def _not_here(self, part: Part, version: int) -> None:
        link, flight = part.link, part.flight
        error = Unavailable(
            f"node {link.node} does not hold the experts of layer {part.call[1]} that table {flight.table} "
            f"gives it; it has loaded table {version}"
        )
        self._listener.not_served(part, error, version < flight.table)

    def _fault(self, part: Part, name: str, message: str) -> None:
        error = error_from_wire(name, f"node {part.link.node}: {message}")
        self._listener.not_served(part, error, isinstance(error, Overloaded))


def _service_us(header: Any) -> int:
    """Of a RESULT; 0 where a reply tells none."""
    told = header[9] if len(header) == 10 else 0
    return told if type(told) is int else 0
