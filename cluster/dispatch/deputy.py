"""Rows that one node owes, asked of another that holds their experts too.

The replicas of a node's experts live on different nodes, so that a part may need several deputies. A row goes
to a deputy with those of its experts that the deputy is to compute; its bytes are those that the first node
was sent, so that the results are the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cluster.dispatch.flight import Flight, Part, Request
from cluster.dispatch.transport import Array, WireShape

if TYPE_CHECKING:
    from cluster.dispatch.link import Link


class Carved(NamedTuple):
    """Some pairs of a request, as a request of their own."""

    request: Request
    pairs: int


def carve(request: Request, chosen: Array, shape: WireShape) -> Carved:
    """chosen: [*] int64 ascending, the pairs of `request` to keep, counted from its first."""
    rows, counts, experts, payload = request
    row_of: Array = np.repeat(np.arange(rows), np.frombuffer(counts, np.uint8))[chosen]
    kept, many = np.unique(row_of, return_counts=True)
    named = np.frombuffer(experts, shape.expert_dtype)[chosen]
    hidden = shape.hidden * (4 if shape.float_rows else 1)
    data = np.frombuffer(payload, np.uint8)
    body = data[: rows * hidden].reshape(rows, hidden)[kept].tobytes()
    if not shape.float_rows:
        body += data[rows * hidden :].reshape(rows, 4)[kept].tobytes()
    header = memoryview(many.astype(np.uint8).tobytes())
    return Carved((len(kept), header, named.tobytes(), memoryview(body)), len(chosen))


def assign(
    experts: Array, holders: Mapping[int, Sequence[int]], seconds_a_row: Mapping[int, float]
) -> dict[int, Array]:
    """Who computes which pairs: every expert on one of its holders, the one that would be done first.

    experts: [pairs], of each pair. holders: of each expert, any hashable names of nodes; none: its pairs stay
    out. seconds_a_row: of every holder. Deterministic: experts with many pairs first, ties by number.
    """
    numbers, counts = np.unique(experts, return_counts=True)
    busy = dict.fromkeys(seconds_a_row, 0.0)
    owner: dict[int, int] = {}
    for place in np.argsort(-counts, kind="stable").tolist():
        expert, rows = int(numbers[place]), int(counts[place])
        ends = [(busy[node] + rows * seconds_a_row[node], node) for node in holders.get(expert, ())]
        if ends:
            busy[(best := min(ends)[1])] = min(ends)[0]
            owner[expert] = best
    by = np.array([owner.get(int(expert), -1) for expert in experts], np.int64)
    return {node: np.flatnonzero(by == node) for node in sorted(set(owner.values()))}


class Deputy(Part):
    """A part of a part, with buffers of its own: nothing of it touches the slot before it is whole.

    principal: the part that it stands in for; None for a canary, whose rows nobody waits for. chosen: [*]
    int64, its pairs, counted from the principal's first. targets: where they are in the slot.
    """

    __slots__ = ("_request", "chosen", "principal", "results", "targets")

    def __init__(
        self,
        flight: Flight,
        principal: Part | None,
        chosen: Array,
        carved: Carved,
        link: Link,
        shape: WireShape,
        now: float,
    ) -> None:
        super().__init__(flight, -1, link, carved.pairs, flight.next_attempt(), now)
        self.principal = principal
        self.chosen = chosen
        self.targets: Array = np.zeros(0, np.int64) if principal is None else principal.places[chosen]
        self._request = carved.request
        self.results = np.empty((carved.pairs, shape.hidden), shape.result_dtype)

    def request(self) -> Request:
        return self._request

    def region(self) -> memoryview:
        return self.results.view(np.uint8).reshape(-1).data

    def answered(self) -> None:
        """Its rows go to where the principal's would have gone."""
        self.link.parts.pop(self.key, None)
        self.done = True
        if self.principal is not None:
            self.flight.slot.results[self.targets] = self.results
            self.principal.deputised()

    def withdraw(self) -> None:
        """It will not answer: its pairs are open again."""
        self.link.parts.pop(self.key, None)
        principal = self.principal
        if principal is not None and not self.done:
            principal.deputies.remove(self)
            assert principal.open is not None, "it has a deputy"
            principal.open = np.union1d(principal.open, self.chosen)
