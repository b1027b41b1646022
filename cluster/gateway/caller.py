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


def caller() -> Caller:
    return _caller.get()


def set_caller(who: Caller) -> None:
    """For this task and those that it starts."""
    _caller.set(who)
