"""A request's spans at the gateway: from its arrival to its end, and within it the wait for a router.

    request                 a child of the client's span, if it sent one; its children at the router
    └── gateway.queue       from being accepted to being given to a router; another one, from the loss of that
                            router to the next

cluster/router/spans.py has the rest. The span's context travels to the router in the SUBMIT header of those
requests that are recorded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from cluster.gateway.arrival import Arrival, arrival
from cluster.types import EngineRequest

if TYPE_CHECKING:
    from cluster.otel import Telemetry

Clock = Callable[[], int]


class GatewaySpans:
    """clock: nanoseconds since 1970."""

    def __init__(self, telemetry: Telemetry, model: str, clock: Clock = time.time_ns) -> None:
        self.telemetry = telemetry
        self.model = model
        self.clock = clock

    def begin(self, requests: Sequence[EngineRequest], key: str) -> RequestSpan:
        """requests: sequences of one request."""
        return RequestSpan(self, requests, key, arrival() or Arrival(self.clock()))


class RequestSpan:
    """traceparent, trace_id: empty where this one is not recorded."""

    def __init__(
        self, spans: GatewaySpans, requests: Sequence[EngineRequest], key: str, came: Arrival
    ) -> None:
        from cluster import otel

        self._otel, self._spans = otel, spans
        first = requests[0]
        self._span = spans.telemetry.begin(
            "request",
            otel.context_of(came.traceparent, came.tracestate),
            came.at,
            {
                "moemesh.request_id": first.request_id,
                "moemesh.kind": first.kind,
                "moemesh.model": spans.model,
                "moemesh.tier": first.tier,
                "moemesh.key": key,
                "moemesh.prompt_tokens": len(first.prompt_ids),
                "moemesh.samples": len(requests),
            },
            server=True,
        )
        self._waits_since = spans.clock()
        self.traceparent = otel.traceparent_of(self._span)
        self.trace_id = otel.trace_id_of(self._span)

    def let_in(self, router: str) -> None:
        """A router has it now."""
        parent = self._otel.inside(self._span)
        since, now = self._waits_since, self._spans.clock()
        self._spans.telemetry.whole("gateway.queue", parent, since, now, {"moemesh.router": router})

    def leave_router(self) -> None:
        """It was lost."""
        self._waits_since = self._spans.clock()

    def refuse(self, error: Exception) -> None:
        self._otel.finish(self._span, self._spans.clock(), f"{type(error).__name__}: {error}")

    def end(self, tokens: int, reasons: Sequence[str], failed: bool) -> None:
        """reasons: why each sequence ended."""
        self._span.set_attribute("moemesh.tokens", tokens)
        self._span.set_attribute("moemesh.finish_reasons", reasons)
        self._otel.finish(self._span, self._spans.clock(), "a sequence failed" if failed else "")
