"""Who the request at hand comes from, for everything that is done for it."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from types import MappingProxyType


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


NO_REQUEST: Mapping[str, str] = MappingProxyType({})
_request: ContextVar[Mapping[str, str]] = ContextVar("request", default=NO_REQUEST)
_deadline: ContextVar[float | None] = ContextVar("deadline", default=None)


def caller() -> Caller:
    return _caller.get()


def set_caller(who: Caller) -> None:
    """For this task and those that it starts."""
    _caller.set(who)


def set_request(request_id: str, trace_id: str = "") -> None:
    """What this task works for, for its log."""
    _request.set({"request_id": request_id} | ({"trace_id": trace_id} if trace_id else {}))


def request_fields() -> Mapping[str, str]:
    """Fields of a log line about the request at hand; none before it was submitted."""
    return _request.get()


def time_left() -> float | None:
    """Seconds until whoever asked gives up, as far as they said."""
    return _deadline.get()


def set_time_left(seconds: float | None) -> None:
    """As of now; read while the request is admitted, which takes no time that matters."""
    _deadline.set(seconds)
