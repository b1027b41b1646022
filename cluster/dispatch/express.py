"""The short way of a call: kernels/express.py over the sockets of the links.

It is taken while a call is alone in flight, its messages are small and every link it needs is at rest: ready,
nothing queued, no frame half read. What the kernels meet beside that they leave to the exchange.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cluster.dispatch.flight import Counters, Flight
from cluster.dispatch.frames import FRAGMENT_BYTES, lead_of
from cluster.dispatch.kinds import Kind
from cluster.dispatch.link import Link
from cluster.dispatch.transport import Array, WireShape
from kernels import express, wire

STAGING_BYTES = 256 << 10
"""Room for one reply, header included. Larger ones come in several reads, which is not for the short way."""

ALL_IN, QUIET = express.ALL_IN, express.QUIET
_DISPATCH, _RESULT = lead_of(Kind.DISPATCH), lead_of(Kind.RESULT)


class Express:
    """Sends and gathers for the exchange, whose thread it belongs to.

    settled: whether all links that are to be used were at rest when `settle` was called; the exchange clears
    it after whatever may have changed that.
    """

    def __init__(self, shape: WireShape, router: int) -> None:
        self.settled = False
        self._shape = shape
        self._tag = np.zeros(wire.TAG, np.int64)
        self._tag[0] = router
        self._head = np.zeros(wire.HEAD_BYTES, np.uint8)
        self._staging = np.zeros(STAGING_BYTES, np.uint8)
        self._bytes = self._staging.data
        # Of one call: in either direction its largest message is at most all of it.
        row = max(shape.row_bytes, shape.top_k * shape.result_bytes)
        self._most_rows = (min(STAGING_BYTES, FRAGMENT_BYTES) - wire.HEAD_BYTES) // row

    def fits(self, tokens: int) -> bool:
        """Whether a call of so many rows may go the short way."""
        return tokens <= self._most_rows

    def settle(self, links: Sequence[Link], ranks: Sequence[int], loads: Array) -> None:
        """Look at the links anew. ranks: of each; only those of rank 0 are looked at, a call that needs
        another one leaves the short way. loads: [links, 2] int64, where to write what their answers tell."""
        count = len(links)
        used = [not ranks or ranks[place] == 0 for place in range(count)]
        fds = [link.fileno() if fine and link.at_rest else -1 for link, fine in zip(links, used, strict=True)]
        self._fds = np.array(fds, np.int32)
        self._peers = np.array([link.incarnation for link in links], np.int64)
        self._polled = np.zeros((count, 2), np.int32)
        self._sent = np.zeros(count, np.int64)
        self._loads = loads
        self.settled = bool((self._fds[used] >= 0).all())

    def post(self, flight: Flight, counters: Counters) -> list[tuple[int, int]]:
        """Send every node its part; (place, bytes sent of it) of those whose message is not wholly sent."""
        tag, slot, shape = self._tag, flight.slot, self._shape
        tag[2], tag[3], tag[4] = flight.call
        tag[5], tag[6] = flight.first_attempt, flight.table
        missed = express.post_requests(
            self._fds,
            _DISPATCH,
            tag,
            self._peers,
            *slot.plan,
            shape.expert_bytes,
            slot.payload,
            shape.row_bytes,
            self._head,
            slot.waiting,
            self._sent,
            counters.tally,
        )
        if not missed:
            return []
        return [(place, sent) for place, sent in enumerate(self._sent.tolist()) if sent >= 0]

    def gather(self, flight: Flight, counters: Counters, timeout_ms: int) -> int:
        """Take in the results of the call posted last: ALL_IN; QUIET after `timeout_ms`; or the place of a
        link that brought something else, see `rest`."""
        slot = flight.slot
        place: int = express.gather_results(
            self._fds,
            _RESULT,
            self._tag,
            self._peers,
            slot.plan[1],
            self._shape.result_bytes,
            slot.results_bytes,
            timeout_ms,
            slot.waiting,
            self._staging,
            self._polled,
            self._loads,
            counters.tally,
        )
        return place

    def rest(self, counters: Counters) -> memoryview:
        """The bytes that `gather` took out of a socket and could not use; valid until the next `gather`."""
        return self._bytes[: counters.tally[6]]
