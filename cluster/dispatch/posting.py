"""Sending the request of a part, and noting when its answer is due."""

from __future__ import annotations

from collections.abc import Callable

from cluster.dispatch.deadlines import ServiceTimes
from cluster.dispatch.deputy import Deputy
from cluster.dispatch.flight import Counters, Part
from cluster.dispatch.kinds import Kind
from cluster.dispatch.pace import Pace
from cluster.dispatch.transport import WireShape
from cluster.errors import Overloaded, Unavailable
from cluster.types import NodeId

IDLE_S = 0.25
"""Longest time between two looks while an answer is awaited: an update may have come."""

_DISPATCH = Kind.DISPATCH


class Posting:
    """Used by the exchange's thread. router: its incarnation. due: when the next answer is to be looked for,
    on the clock, or sooner. known: whether it was known how long each node takes when `patience_s` was asked.
    """

    def __init__(self, router: int, shape: WireShape, counters: Counters, clock: Callable[[], float]) -> None:
        self.due = 0.0
        self.known = False
        self.times = ServiceTimes()
        self._router = router
        self._shape = shape
        self._counters = counters
        self._clock = clock

    def post(self, part: Part, sent: int = 0) -> None:
        """Send a part's request, if its node is there; otherwise it goes out when the node is.

        sent: bytes of it that the socket has taken already.
        """
        link = part.link
        connection = link.connection
        if connection is None or not link.ready:
            self.due = 0.0
            return
        if part.asked and not sent:
            part.ask_again()
            self._counters.resends += 1
        first_time, part.asked, part.receiving = not part.asked, True, False
        alone = first_time and len(link.parts) == 1
        now = self._clock()
        part.posted = now if alone else 0.0
        rows, counts, experts, body = part.request()
        tag = (self._router, link.incarnation, *part.call, part.attempt, part.flight.table)
        header = [*tag, rows, counts, experts]
        self.expect(part, now, len(body))
        try:
            if sent:
                head = connection.resume(_DISPATCH, header, body, sent)
            else:
                head = connection.send_body(_DISPATCH, header, body, keep=True)
        except (Unavailable, Overloaded) as error:  # a peer that reads nothing is as good as gone
            link.lose(str(error))
            return
        self._counters.sent(head, len(body))

    def expect(self, part: Part, now: float, request_bytes: int) -> None:
        """A request has gone out at `now`: when others may, and must, be asked for its rows."""
        times = self.times.of(part.link.node)
        size = request_bytes + part.pairs * self._shape.result_bytes
        part.begun = now
        part.expected = times.expected(part.pairs, size, self._speed(part))
        allowance = times.allowance(part.expected)
        part.hedge_at = now + allowance.hedge_s
        part.late_at = now + allowance.late_s
        self.due = min(self.due, part.hedge_at, part.late_at)

    def patience_s(self, pace: Pace, pairs: int) -> float:
        """How long to wait for answers to a call of so many pairs, evenly spread, without looking at each."""
        share = pairs // max(len(pace.nodes), 1)
        least, self.known = IDLE_S, True
        for node, speed in zip(pace.nodes, pace.speed.tolist(), strict=True):
            times = self.times.of(node)
            self.known &= times.known
            least = min(least, times.allowance(times.expected(share, 0, speed)).hedge_s)
        return least

    @staticmethod
    def _speed(part: Part) -> float:
        pace = part.flight.pace
        if not isinstance(part, Deputy):
            return float(pace.speed[part.node])
        node: NodeId = part.link.node
        place = pace.nodes.index(node) if node in pace.nodes else int(pace.speed.argmin())
        return float(pace.speed[place])
