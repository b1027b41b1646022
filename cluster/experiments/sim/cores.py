"""Processes of one machine that want its cores at once share them.

Every process has one thread. Of `running` of them on `cores` cores each goes on at min(1, cores / running) of
what it does alone: processor sharing, the limit of a scheduler with short slices. No order among processes is
assumed, none waits while a core is free, and all of them together never get more than the cores give.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol


def share(running: int, cores: float) -> float:
    """Of a core that each of so many running processes gets."""
    return min(1.0, cores / running) if running else 1.0


class Cores:
    """Work that is under way on one machine, in core-seconds. Times given must not go back.

    `_each` is what a process that has run since the beginning would have got: work that begins now ends when
    it has grown by the work's core-seconds, however many others come and go meanwhile.
    """

    def __init__(self, cores: float) -> None:
        self._cores = cores
        self._each = 0.0
        self._now = 0.0
        self._ends: list[tuple[float, int, int]] = []
        self._order = 0

    def begin(self, now: float, process: int, work: float) -> None:
        """`process`, which is doing nothing here, has so many core-seconds to do."""
        self._advance(now)
        self._order += 1
        heapq.heappush(self._ends, (self._each + work, self._order, process))

    def next_end(self) -> float:
        """When the next process will have done its work if no other begins; infinity if none runs."""
        if not self._ends:
            return math.inf
        left = max(self._ends[0][0] - self._each, 0.0)
        return self._now + left / share(len(self._ends), self._cores)

    def end(self, now: float) -> int:
        """The process whose end `next_end` told, at that time; it runs no more."""
        self._advance(now)
        return heapq.heappop(self._ends)[2]

    def drop(self, now: float, process: int) -> None:
        """`process` ends unfinished, if it runs."""
        self._advance(now)
        self._ends = [each for each in self._ends if each[2] != process]
        heapq.heapify(self._ends)

    def left(self, now: float, process: int) -> float:
        """Core-seconds that `process` has still to do."""
        self._advance(now)
        return sum(max(end - self._each, 0.0) for end, _, running in self._ends if running == process)

    def _advance(self, now: float) -> None:
        self._each += (now - self._now) * share(len(self._ends), self._cores)
        self._now = now


class Clock(Protocol):
    """The simulation, as processes need it."""

    now: float

    def at(self, time: float, do: Callable[..., None], *arguments: Any) -> None: ...


class Processes:
    """Every process does its work in order of arrival, one piece at a time, on the cores of its machine."""

    def __init__(self, machines: list[Cores], machine_of: list[int], clock: Clock) -> None:
        """machine_of: [processes] places in `machines`."""
        self._machines, self._of, self._clock = machines, machine_of, clock
        self._queues: list[deque[tuple[float, Callable[..., None], tuple[Any, ...]]]] = [
            deque() for _ in machine_of
        ]
        self._expected = [0] * len(machines)  # how often each machine's next end has been told

    def run(self, process: int, work: float, do: Callable[..., None], *arguments: Any) -> None:
        """`process` has so many core-seconds more to do; when they are done `do` is called."""
        queue = self._queues[process]
        queue.append((work, do, arguments))
        if len(queue) == 1:
            self._begin(process)

    def left(self, process: int) -> float:
        """Core-seconds that a process has before it, begun or not."""
        waiting = sum(work for work, _, _ in list(self._queues[process])[1:])
        return waiting + self._machines[self._of[process]].left(self._clock.now, process)

    def stop(self, process: int) -> None:
        """All that a process has before it is forgotten."""
        if self._queues[process]:
            self._queues[process].clear()
            self._machines[self._of[process]].drop(self._clock.now, process)
            self._expect(self._of[process])

    def _begin(self, process: int) -> None:
        machine = self._of[process]
        self._machines[machine].begin(self._clock.now, process, self._queues[process][0][0])
        self._expect(machine)

    def _expect(self, machine: int) -> None:
        """Wake up at the machine's next end; what was expected before is void."""
        self._expected[machine] += 1
        end = self._machines[machine].next_end()
        if end < math.inf:
            self._clock.at(max(end, self._clock.now), self._ended, machine, self._expected[machine])

    def _ended(self, machine: int, expected: int) -> None:
        if expected != self._expected[machine]:
            return
        process = self._machines[machine].end(self._clock.now)
        _, do, arguments = self._queues[process].popleft()
        if self._queues[process]:
            self._begin(process)
        else:
            self._expect(machine)
        do(*arguments)
