"""Ray and the kernels of this machine.

On one machine they get ready side by side. A device of a fleet has them one after the other: Ray gives up a
node that has not registered within 30 s, no option changes that, and a slow device compiles for minutes. The
head has Ray first, since others wait for it; the others have their kernels first, so that a machine that has
joined can be given roles. Directly before its Ray starts, the head hears that nothing of an earlier life of
the machine runs any more.

Everything that was started is in the record before the next step, so that whoever comes after a crash of this
process can end it.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Protocol

from cluster.config import WireSecurity
from cluster.errors import StartFailed
from cluster.fleet import processes, raynode, stop
from cluster.fleet.folder import Folder, Record
from cluster.fleet.kernels import KernelWarmup
from cluster.fleet.obituary import Obituary
from cluster.fleet.raynode import LABEL, RayNode, RayPlace
from cluster.fleet.signals import Signals

KERNELS_S = 900.0
"""A first compilation takes one to two minutes on two cores."""

RAY_S = 90.0
POLL_S = 0.05


class Progress(Protocol):
    def phase(self, text: str) -> None:
        """What goes on now; replaces what was said before."""

    def done(self, text: str) -> None:
        """A phase that is over; stays on the screen."""


class Quiet:
    """Progress for what its caller tells by itself, as of many machines how many are done."""

    def phase(self, text: str) -> None:
        pass

    def done(self, text: str) -> None:
        pass


class Stopwatch:
    """Seconds since it was made, behind what is said."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def timed(self, text: str) -> str:
        return f"{text} ({self.seconds:.1f} s)"


class Machine:
    """One attempt to start Ray here. `start` and `wait` may fail anywhere; `tear_down` then ends what there
    is, and what the caller has noted in the record besides.

    record: what the folder has. watch: counts from the attempt's begin.
    """

    def __init__(self, folder: Folder, record: Record, progress: Progress, signals: Signals) -> None:
        self.record, self.watch = record, Stopwatch()
        self._folder, self._progress, self._signals = folder, progress, signals
        self._ray: RayNode | None = None
        self._place: RayPlace | None = None
        self._ray_began: float | None = None
        self._warmup: KernelWarmup | None = None
        self._obituary: Obituary | None = None

    def note(self, **changes: Any) -> None:
        self.record = dataclasses.replace(self.record, **changes)
        self._folder.write(self.record)

    def note_processes(self) -> None:
        """All that have come from those in the record."""
        self.note(processes=tuple(processes.family(self.record.processes)))

    def start(self, security: WireSecurity, place: RayPlace | None = None) -> None:
        """place: of a machine of a fleet; None: Ray is for this one alone. This process gets what it needs to
        talk to Ray into its environment."""
        self._ray = RayNode(self._folder, security, place)
        self._place = place
        self.note(temp=str(self._ray.temp))
        if place is None or not place.head:
            self._start_ray()
        if place is None or place.head:
            self._warm()
        os.environ.update(raynode.driver_variables(self._ray.environment))

    def _has_told(self) -> bool:
        """Whether the head has heard of the end of what was here before. Raises StartFailed."""
        assert self._ray is not None, "start() comes first"
        assert self._place is not None, "a machine alone has nobody to tell"
        if self._obituary is None:
            head, name = self._place.head, self._place.labels[LABEL]
            self._obituary = Obituary(self._ray.environment, head, name, self._folder.logs / "ray.log")
            if telling := self._obituary.mark:
                self.note(processes=(*self.record.processes, telling))
        return self._obituary.finished()

    def _start_ray(self) -> None:
        assert self._ray is not None, "start() comes first"
        self._ray_began = self.watch.seconds
        self.note(processes=(self._ray.start(),))

    def _warm(self) -> None:
        assert self._ray is not None, "start() comes first"
        self._warmup = KernelWarmup(self._ray.environment, self._folder.logs / "kernels.log")
        if warming := self._warmup.mark:
            self.note(processes=(*self.record.processes, warming))

    def wait(self) -> str:
        """Until Ray and the kernels are there; returns the address of Ray's GCS. Raises StartFailed."""
        assert self._ray is not None, "start() comes first"
        address, warm = "", False
        while not (address and warm):
            self._signals.check()
            if not address and (address := self._ray.address() or ""):
                self.note(ray=address)
                self._progress.done(self.watch.timed(f"Ray at {address}"))
            if address and self._warmup is None:
                self._warm()
            if not warm and self._warmup is not None and (warm := self._warmup.finished()):
                self._progress.done(self.watch.timed(f"kernels: {self._warmup.summary}"))
            if warm and self._ray_began is None and self._has_told():
                self._start_ray()
            self._progress.phase(self._waiting(address, warm))
            self._check_deadlines(address, warm)
            time.sleep(POLL_S)
        return address

    def _waiting(self, address: str, warm: bool) -> str:
        waiting = ["starting Ray"] if self._ray_began is not None and not address else []
        if self._warmup is not None and not warm:
            waiting.append(f"kernels {self._warmup.done}/{self._warmup.total or '?'}")
        return ", ".join(waiting) or "connecting to Ray"

    def check(self) -> None:
        """Raises StartFailed if Ray has ended."""
        if self._ray is not None:
            self._ray.check()

    def tear_down(self, clean: Callable[[], None]) -> None:
        """End Ray and the kernels, then `clean`, whatever becomes of the others."""
        with ExitStack() as steps:  # taken in reverse order
            steps.callback(clean)
            if self._ray is not None:
                steps.callback(self._ray.end)
            if self._obituary is not None:
                steps.callback(self._obituary.end)
            if self._warmup is not None:
                steps.callback(self._warmup.end)

    def clean(self, keep_logs: bool) -> None:
        stop.clean(self.record, self._folder, keep_logs)

    def _check_deadlines(self, address: str, warm: bool) -> None:
        now = self.watch.seconds
        if self._ray_began is not None and not address and now > self._ray_began + RAY_S:
            raise StartFailed(f"Ray took longer than {RAY_S:g} s; see {self._folder.logs}")
        if not warm and now > KERNELS_S:
            raise StartFailed(f"the kernels took longer than {KERNELS_S:g} s; see {self._folder.logs}")
