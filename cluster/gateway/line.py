"""The requests that wait at a gateway: who is next, and who is told at once to come back later. Pure."""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass
from typing import Generic, TypeVar

Entry = TypeVar("Entry")

HEADWAY = 4096.0
"""A step of priority is worth being let in before that many tokens of others' work: it never starves them."""

RECENT = 0.2
"""What the last interval weighs in the mean of those before."""


LEAST_WAIT_S = 0.05


def smoothed(mean: float, value: float) -> float:
    """Of what came before, 0 for nothing, and one more."""
    return value if mean == 0 else (1 - RECENT) * mean + RECENT * value


def turn_every(service_s: float, places: int) -> float:
    """Seconds between two turns in the mean while every place is taken: each comes free once in the time that
    a sequence holds it (Little 1961). Times between turns themselves tell nothing: sequences that began
    together end together, and of the times between their turns all but one are 0."""
    return service_s / places


def longest_wait(service_s: float, share: float, most_s: float) -> float:
    """For how long a request may wait for its turn: a part of the time that requests take once they are let
    in, so that those that are accepted are not much slower than on a cluster with places left. Short bursts
    of short requests wait up to LEAST_WAIT_S all the same. service_s: 0 while unknown."""
    if service_s == 0:
        return most_s
    return min(most_s, max(LEAST_WAIT_S, share * service_s))


@dataclass(frozen=True)
class Full:
    """The bound that a request met. waiting: sequences, of everybody or, where it was the key's `own` bound,
    of that key; free: places left."""

    waiting: int
    free: int
    own: bool


@dataclass(slots=True)
class _Place(Generic[Entry]):
    entry: Entry
    key: str
    sequences: int
    start: float
    rank: float
    here: bool = True


class Line(Generic[Entry]):
    """Start-time fair queueing over keys (Goyal, Vin, Cheng 1996), with priorities.

    Every key gets an equal part of the work that is let in while others wait, whatever it asks for; the
    requests of one key keep their order within a priority. At most `most` sequences wait, and those of one
    key only while they are fewer than the places left: one key alone fills half of them, and the rest stays
    for others (dynamic thresholds, Choudhury and Hahne 1998). The key "" is everybody's, where no keys are
    asked for, and may fill all.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._heap: list[tuple[float, int, _Place[Entry]]] = []
        self._places: dict[Entry, _Place[Entry]] = {}
        self._finish: dict[str, float] = {}
        self._now = 0.0
        self._numbers = itertools.count()
        self.sequences = 0

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, entry: object) -> bool:
        return entry in self._places

    def full(self, key: str, sequences: int, leaving: Entry | None = None) -> Full | None:
        """Why so many of this key cannot wait too; None if they can. leaving: whose places count as free."""
        here = [place for place in self._places.values() if place.entry != leaving]
        waiting = sum(place.sequences for place in here)
        free = self._most - waiting
        if sequences > free:
            return Full(waiting, free, own=False)
        mine = sum(place.sequences for place in here if place.key == key)
        if key and mine and mine + sequences > free:
            return Full(mine, free, own=True)
        return None

    def ahead(self, key: str, priority: int, leaving: Entry | None = None) -> int:
        """Sequences that would be let in before a request that came now. leaving: who does not count."""
        rank = self._start(key) - HEADWAY * priority
        return sum(
            place.sequences
            for place in self._places.values()
            if place.rank <= rank and place.entry != leaving
        )

    def push(self, entry: Entry, key: str, *, tokens: int, sequences: int = 1, priority: int = 0) -> None:
        """tokens: the work of all its sequences, prompt and most new tokens. entry: hashable, once."""
        start = self._start(key)
        self._finish[key] = start + tokens
        place = _Place(entry, key, sequences, start, start - HEADWAY * priority)
        heapq.heappush(self._heap, (place.rank, next(self._numbers), place))
        self._places[entry] = place
        self.sequences += sequences

    def first(self) -> Entry | None:
        """Who is next; None if nobody waits."""
        while self._heap and not self._heap[0][2].here:
            heapq.heappop(self._heap)
        return self._heap[0][2].entry if self._heap else None

    def let_in(self, entry: Entry) -> None:
        """It has its turn. It must wait here."""
        self._now = max(self._now, self._places[entry].start)
        self.drop(entry)

    def drop(self, entry: Entry) -> bool:
        """It has gone without a turn; False if it does not wait."""
        place = self._places.pop(entry, None)
        if place is None:
            return False
        place.here = False
        self.sequences -= place.sequences
        if not self._places:
            self._heap.clear()
            self._finish.clear()
            self._now = 0.0
        return True

    def _start(self, key: str) -> float:
        return max(self._now, self._finish.get(key, 0.0))
