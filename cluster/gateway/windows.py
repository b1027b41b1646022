"""Requests that go on without a reader, because their client asked for the time to come back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Windows(Generic[T]):
    """At most `most` at once: of more, the one that has waited for longest is let go first; 0 are none.

    let_go: called with what nobody came back for. Everything runs on the loop's thread.
    """

    def __init__(self, most: int, let_go: Callable[[T], None]) -> None:
        self._most = most
        self._let_go = let_go
        self._timers: dict[T, asyncio.TimerHandle] = {}

    def __len__(self) -> int:
        return len(self._timers)

    def open(self, what: T, seconds: float) -> None:
        self._timers[what] = asyncio.get_running_loop().call_later(seconds, self._end, what)
        while len(self._timers) > self._most:
            self._end(next(iter(self._timers)))

    def close(self, what: T) -> bool:
        """Somebody came back, or it is not wanted any more. False if none was open."""
        timer = self._timers.pop(what, None)
        if timer is None:
            return False
        timer.cancel()
        return True

    def end_all(self) -> None:
        while self._timers:
            self._end(next(iter(self._timers)))

    def _end(self, what: T) -> None:
        self.close(what)
        self._let_go(what)
