"""What came with a request before it was looked at: its W3C trace context, and when. Only where requests are
traced."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import grpc

Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Any]]

HEADERS = ("traceparent", "tracestate")


@dataclass(frozen=True)
class Arrival:
    """at: nanoseconds since 1970."""

    at: int
    traceparent: str = ""
    tracestate: str = ""


_arrival: ContextVar[Arrival | None] = ContextVar("arrival", default=None)


def arrival() -> Arrival | None:
    return _arrival.get()


def note_arrival(headers: Mapping[str, str]) -> None:
    """Now, for this task and those that it starts."""
    _arrival.set(Arrival(time.time_ns(), *(headers.get(name, "") for name in HEADERS)))


class ArrivalInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Notes it for the task that then runs the handler."""

    async def intercept_service(self, continuation: Continuation, details: grpc.HandlerCallDetails) -> Any:
        note_arrival({name: str(value) for name, value in details.invocation_metadata if name in HEADERS})
        return await continuation(details)
