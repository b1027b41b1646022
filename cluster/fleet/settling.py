"""What a running controller can do only bit by bit, waited for."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from cluster.errors import MoemeshError, OutOfMemoryBudget, StartFailed, Unavailable
from cluster.fleet.ask import Controller, moved, patient_status
from cluster.fleet.machine import Progress
from cluster.fleet.signals import Signals

POLL_S = 0.1
AGAIN_S = 120.0
"""For so long a step is tried again that the controller cannot do yet: experts move, a member is away."""

MOVED_WITHIN_S = 600.0


class Settling:
    """Of one controller."""

    def __init__(self, controller: Controller, progress: Progress, signals: Signals) -> None:
        self._controller, self._progress, self._signals = controller, progress, signals

    def until(self, done: Callable[[], Any], what: str, limit_s: float = AGAIN_S) -> None:
        """Ask again while it says no, or is Unavailable. Raises StartFailed after `limit_s`, and other errors
        at once."""
        deadline = time.monotonic() + limit_s
        while True:
            self._signals.check()
            try:
                if done():
                    return
                said = "it is not so yet"
            except Unavailable as error:
                said = str(error)
            if time.monotonic() > deadline:
                raise StartFailed(f"waited {limit_s:g} s for {what}: {said}")
            time.sleep(POLL_S)

    def drain(self, node: str) -> None:
        """For an upgrade. Returns when others have its experts. Raises OutOfMemoryBudget where they have no
        room for them."""
        self._progress.phase(f"{node} is drained")
        self.until(lambda: self._controller.drain(node, for_upgrade=True), "moves to be possible")
        self.until(lambda: self._emptied(node), f"{node} to be empty", MOVED_WITHIN_S)

    def drain_if_possible(self, node: str) -> None:
        """Where the others have no room for its experts, streams wait until those are loaded once more."""
        try:
            self.drain(node)
        except OutOfMemoryBudget as error:
            self._progress.done(f"{error}. It ends with its experts: streams wait until others have them")

    def give_back(self, node: str) -> None:
        """Let it hold experts again, if an upgrade has drained it."""
        self._progress.phase(f"{node} gets experts")
        undrain = partial(self._controller.undrain, node, fill=True, for_upgrade=True)
        self.until(undrain, "moves to be possible", MOVED_WITHIN_S)

    def take_back(self, node: str) -> None:
        """As `give_back` after a failure, which is what will be reported: what is possible at once."""
        with suppress(MoemeshError):
            try:
                self._controller.undrain(node, fill=True, for_upgrade=True)
            except Unavailable:  # others are being moved
                self._controller.undrain(node, for_upgrade=True)

    def member(self, name: str) -> dict[str, Any] | None:
        return member_of(patient_status(self._controller), name)

    def _emptied(self, node: str) -> bool:
        status = self._controller.status()
        member = member_of(status, node)
        return moved(status) and (member is None or not member["stats"].get("held"))


def member_of(status: dict[str, Any], name: str) -> dict[str, Any] | None:
    return next((member for member in status["members"] if member["id"] == name), None)
