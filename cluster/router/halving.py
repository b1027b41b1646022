"""Whether a step is computed in two halves, each while the other's rows are at the experts.

What a half costs beside a whole is not known beforehand: decoding is bound by reading weights, and two halves
read them twice. Where a round trip takes longer beside the computing than a layer's computing does, that
cannot matter: a half that costs as much as the whole is done before the other half is back.
"""

from __future__ import annotations

from collections.abc import Callable

MOST_PARTS = 2

LEAST_LATENCY_S = 2e-3
"""Of a link: below it a second message a layer costs the router more than it can gain."""

WHOLE_EVERY = 16
"""One step of so many is not halved: round trips are timed only where nothing else is under way."""

KEEP = 0.5
"""Of what was known of a step's length, with every step."""


def pays(latency_s: float, step_s: float, layers: int) -> bool:
    """latency_s: there and back on the slowest link, beside the nodes' computing. step_s: of a whole step.
    layers: sparse ones, each of which is a round trip.

    What a step does not spend on its round trips it computes, so that the condition is latency ≥ computing.
    """
    return latency_s >= LEAST_LATENCY_S and 2 * latency_s * layers >= step_s


class Halving:
    """Of one engine. fixed: parts of every step; 0: as `pays` says. latency: asked now and then, as for
    `pays`, 0.0 while nothing is known."""

    def __init__(
        self, fixed: int, layers: int, latency: Callable[[], float], clock: Callable[[], float]
    ) -> None:
        self._fixed, self._layers, self._latency, self._clock = fixed, layers, latency, clock
        self._steps = 0
        self._begun = self._whole_s = 0.0
        self._parts = self._usual = 1

    def begin(self) -> int:
        """A step begins: in how many parts it is to be computed."""
        self._steps += 1
        self._begun = self._clock()
        self._parts = self._fixed or (self._usual if self._steps % WHOLE_EVERY else 1)
        return self._parts

    def end(self) -> None:
        """All layers of the step are computed."""
        if self._fixed or self._parts != 1:
            return
        seconds = self._clock() - self._begun
        self._whole_s = KEEP * self._whole_s + (1 - KEEP) * seconds if self._whole_s else seconds
        if self._steps % WHOLE_EVERY == 0:
            self._usual = MOST_PARTS if pays(self._latency(), self._whole_s, self._layers) else 1
