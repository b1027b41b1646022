"""A traced request's spans at a router, as children of the gateway's:

    router.queue        from its arrival to the step that it first takes part in
    router.prefill      from there to its first token; of a score or an embedding, to the end
    router.decode       from the first token to the end

The last two carry counts instead of a span a step or a dispatch: tokens, steps, and for every node the
messages and the seconds of service that its answers told in these steps. A step is shared by all requests of
its batch, and so are its seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cluster.types import Emitted, EngineRequest, Event, Failed, Finished, NodeId, RequestId

if TYPE_CHECKING:
    from opentelemetry.context import Context

    from cluster.otel import Attributes, Telemetry

Clock = Callable[[], int]
Told = Mapping[NodeId, tuple[float, float]]


@dataclass(slots=True)
class _Live:
    """One request. admitted, first: when its prefill began and ended, 0 before. steps, nodes: of the phase
    under way; nodes: [messages, seconds of service]. tokens: so far."""

    request: EngineRequest
    parent: Context
    arrived: int
    admitted: int = 0
    first: int = 0
    steps: int = 0
    tokens: int = 0
    nodes: dict[NodeId, list[float]] = field(default_factory=dict)

    def add_step(self, told: Told) -> None:
        self.steps += 1
        for node, (messages, seconds) in told.items():
            sums = self.nodes.setdefault(node, [0.0, 0.0])
            sums[0] += messages
            sums[1] += seconds

    def counts(self) -> Attributes:
        names = sorted(self.nodes)
        return {
            "moemesh.prompt_tokens": len(self.request.prompt_ids),
            "moemesh.tokens": self.tokens,
            "moemesh.steps": self.steps,
            "moemesh.nodes": names,
            "moemesh.node_messages": [round(self.nodes[name][0]) for name in names],
            "moemesh.node_service_s": [self.nodes[name][1] for name in names],
        }


class RouterSpans:
    """`arrived` is called by the front door's thread, all else by the engine's.

    service: (messages, seconds) that every node's answers told in the last step. clock: ns since 1970.
    """

    def __init__(
        self, telemetry: Telemetry, service: Callable[[], Told], clock: Clock = time.time_ns
    ) -> None:
        self._telemetry = telemetry
        self._service = service
        self._clock = clock
        self._arrivals: dict[RequestId, int] = {}
        self._live: dict[RequestId, _Live] = {}
        self._step_began = 0

    def arrived(self, request: EngineRequest) -> None:
        if request.trace:
            self._arrivals[request.request_id] = self._clock()

    def submitted(self, request: EngineRequest) -> None:
        if at := self._arrivals.pop(request.request_id, 0):
            from cluster.otel import context_of

            self._live[request.request_id] = _Live(request, context_of(request.trace), at)

    def before_step(self) -> None:
        if self._live:
            self._step_began = self._clock()

    def see(
        self, events: Sequence[Event], running: Collection[RequestId], known: Collection[RequestId]
    ) -> None:
        """After a step, or between two. running: in the batch; known: those that somebody waits for."""
        if not self._live:
            return
        now, began, self._step_began = self._clock(), self._step_began, 0
        told = self._service() if began else {}
        by_request: dict[RequestId, list[Event]] = {}
        for event in events:
            by_request.setdefault(event.request_id, []).append(event)
        for name, live in list(self._live.items()):
            mine = by_request.get(name, [])
            if began and (mine or name in running):
                self._take_part(live, began, told)
            self._count_tokens(live, mine, now)
            ends = [event for event in mine if not isinstance(event, Emitted)]
            if ends or name not in known:
                del self._live[name]
                self._end(live, ends[-1] if ends else None, now)

    def _take_part(self, live: _Live, began: int, told: Told) -> None:
        if not live.admitted:
            live.admitted = max(began, live.arrived)
            self._telemetry.whole("router.queue", live.parent, live.arrived, live.admitted, {})
        live.add_step(told)

    def _count_tokens(self, live: _Live, events: Sequence[Event], now: int) -> None:
        emitted = sum(isinstance(event, Emitted) for event in events)
        live.tokens += emitted
        if emitted and not live.first:
            live.first = now
            self._telemetry.whole("router.prefill", live.parent, live.admitted, now, live.counts())
            live.steps, live.nodes = 0, {}

    def _end(self, live: _Live, event: Event | None, now: int) -> None:
        """event: None where it was aborted."""
        attributes = dict(live.counts())
        if event is None or isinstance(event, Finished):
            attributes["moemesh.finish_reason"] = "aborted" if event is None else event.reason
        error = f"{type(event.error).__name__}: {event.error}" if isinstance(event, Failed) else ""
        name, begin = "router.queue", live.arrived
        if live.first:
            name, begin = "router.decode", live.first
        elif live.admitted:
            name, begin = "router.prefill", live.admitted
        self._telemetry.whole(name, live.parent, begin, now, attributes, error)
