"""A history seen from its requests and from its faults. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from cluster.experiments.chaos import history as h
from cluster.experiments.chaos.promises import EFFECT_S, Promise
from cluster.experiments.chaos.schedule import Kind


@dataclass(frozen=True)
class Span:
    """A fault as it happened."""

    kind: Kind
    victim: str
    begin: float
    end: float

    def touches(self, begin: float, end: float) -> bool:
        """Whether it may have to do with what happened between the two."""
        return self.begin <= end and begin <= self.end + EFFECT_S


@dataclass(frozen=True)
class Near:
    """Which faults may have to do with something, and what was promised for them."""

    spans: Sequence[Span]
    promises: Mapping[Kind, Promise]

    def kinds(self, begin: float, end: float) -> list[Kind]:
        return sorted({span.kind for span in self.spans if span.touches(begin, end)})

    def promised(self, begin: float, end: float) -> list[Promise]:
        return [self.promises[kind] for kind in self.kinds(begin, end)]


def spans_of(events: Sequence[h.Event]) -> list[Span]:
    """Faults that were not lifted last to the end."""
    over = {event.number: event.t for event in events if isinstance(event, h.Over)}
    last = events[-1].t if events else 0.0
    return [
        Span(Kind(event.kind), event.victim, event.t, over.get(event.number, last))
        for event in events
        if isinstance(event, h.Begun)
    ]


def by_request(events: Sequence[h.Event]) -> dict[str, list[h.Event]]:
    found: dict[str, list[h.Event]] = defaultdict(list)
    for event in events:
        if (request := getattr(event, "request", None)) is not None:
            found[request].append(event)
    return found


def gaps_of(own: Sequence[h.Event]) -> Iterator[tuple[float, float]]:
    """(begin, end) of every pause before a token that its client did not make itself."""
    since: float | None = None
    for event in own:
        if isinstance(event, h.Tokens):
            if since is not None:
                yield since, event.t
            since = event.t
        elif isinstance(event, h.Left):
            since = None
        elif isinstance(event, h.Asked) and since is None:
            since = event.t
