"""Who the request at hand comes from, for everything that is done for it."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True)
class Caller:
    """Of one API key. id: "" where none is asked for.

    requests_per_minute, concurrent: what the key may at most; 0 is no limit.
    """

    id: str = ""
    requests_per_minute: int = 0
    concurrent: int = 0


ANYBODY = Caller()

_caller: ContextVar[Caller] = ContextVar("caller", default=ANYBODY)


_deadline: ContextVar[float | None] = ContextVar("deadline", default=None)


def caller() -> Caller:
    return _caller.get()


def set_caller(who: Caller) -> None:
    """For this task and those that it starts."""
    _caller.set(who)


def time_left() -> float | None:
    """Seconds until whoever asked gives up, as far as they said."""
    return _deadline.get()


def set_time_left(seconds: float | None) -> None:
    """As of now; read while the request is admitted, which takes no time that matters."""
    _deadline.set(seconds)
