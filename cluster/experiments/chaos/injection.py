"""Faults as they are carried out: each in its steps, begun once its conditions hold."""

from __future__ import annotations

import heapq
import signal
import time
from collections.abc import Callable, Sequence

from cluster.experiments.chaos import history as h
from cluster.experiments.chaos.history import History
from cluster.experiments.chaos.schedule import Fault, Kind
from cluster.experiments.chaos.supervised import POLL_S, Supervised

FLAP_S = 0.3
"""A flapping node is frozen for so long, and then runs for so long."""

HEALED_WITHIN_S = 60.0


BEGIN_END = {
    Kind.freeze_node: ("freeze", "thaw"),
    Kind.cut_node: ("cut", "mend"),
    Kind.slow_node: ("slow_down", "speed_up"),
    Kind.flap_node: ("freeze", "thaw"),
    Kind.freeze_router: ("freeze", "thaw"),
    Kind.freeze_gateway: ("freeze", "thaw"),
}


def steps(fault: Fault) -> list[tuple[float, str]]:
    """(seconds after its beginning, what to do with its victims), in this order."""
    begin, end = BEGIN_END.get(fault.kind, ("kill", "start"))
    flaps = int(fault.for_s / FLAP_S) if fault.kind is Kind.flap_node else 0
    between = [(k * FLAP_S, end if k % 2 else begin) for k in range(1, flaps)]
    if fault.kind is Kind.tamper_node:
        between = [(0.0, "tamper")]
    return [(0.0, begin), *between, (fault.for_s, end)]


class Injection:
    """Runs on a thread of its own. A fault begins late where the others of the victim's role are not back
    yet: the machine may be slower than the schedule thinks, and a promise holds only while its conditions do.
    Those that come after it are as late.
    """

    def __init__(
        self,
        cluster: Supervised,
        history: History,
        progress: Callable[[Fault], None],
        stop: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """progress: is told of each fault that begins. stop: asked whether to begin no more."""
        self._cluster, self._history, self._progress = cluster, history, progress
        self._stop, self._clock = stop, clock
        self._due: list[tuple[float, int, str, Fault]] = []
        """Steps of faults that have begun: (when, place in its fault, what to do, fault)."""

    def run(self, faults: Sequence[Fault]) -> None:
        """faults: in the order of their times. Returns when all are over."""
        start = self._clock()
        for fault in faults:
            planned = start + fault.at_s
            self._work(until=planned)
            self._wait_for_others(fault)
            if self._stop():
                break
            start += max(0.0, self._clock() - planned)
            self._begin(fault)
        self._work()

    def _work(self, until: float | None = None) -> None:
        """Do what is due, until then; None: until nothing is left to do."""
        while self._due if until is None else self._clock() < until and not self._stop():
            self._do_due()
            left = POLL_S if until is None else max(0.0, until - self._clock())
            time.sleep(min(left, POLL_S))
        self._do_due()

    def _wait_for_others(self, fault: Fault) -> None:
        """Until as many others of its role are there as the rules count on."""
        role, shape = fault.kind.role, self._cluster.shape
        needed = len(shape.names(role)) - shape.may_be_away(role)
        deadline = self._clock() + HEALED_WITHIN_S
        while len(ready := self._cluster.ready(role) - {*fault.victims}) < needed and not self._stop():
            self._do_due()
            if self._clock() > deadline:
                what = f"of {role}s besides {', '.join(fault.victims)} {needed} are needed: {sorted(ready)}"
                self._history.add(h.Unhealed, what=what)
                return
            time.sleep(POLL_S)

    def _begin(self, fault: Fault) -> None:
        victim = ", ".join(fault.victims)
        self._history.add(h.Begun, number=fault.number, kind=fault.kind.value, victim=victim)
        self._progress(fault)
        now = self._clock()
        for place, (after, what) in enumerate(steps(fault)):
            heapq.heappush(self._due, (now + after, place, what, fault))
        self._do_due()

    def _do_due(self) -> None:
        while self._due and self._due[0][0] <= self._clock():
            _, place, what, fault = heapq.heappop(self._due)
            for victim in fault.victims:
                self._do(what, victim, fault.number)
            if place == len(steps(fault)) - 1:
                self._history.add(h.Over, number=fault.number)

    def _do(self, what: str, victim: str, number: int) -> None:
        match what:
            case "kill":
                self._cluster.kill(victim)
            case "tamper":
                self._cluster.tamper(victim, number)
            case "start":
                self._cluster.start(victim)
            case "freeze":
                self._cluster.signal(victim, signal.SIGSTOP)
            case "thaw":
                self._cluster.signal(victim, signal.SIGCONT)
            case _:
                self._cluster.tell(victim, what)
