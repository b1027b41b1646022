"""Whether a router is there: it is asked again and again, and any byte of it is an answer. Pure."""

from __future__ import annotations

from dataclasses import dataclass

BEAT_S = 0.2
"""Between two PINGs. A router's front door answers from a thread of its own, whatever its engine does."""

SILENT_BEATS = 5
"""Without a byte. More than a node is given (cluster/dispatch/health.py): a false alarm costs prompts
computed again, not a choice. Beats are counted, not seconds, so that a gateway which itself was held up for
long hears first what has come meanwhile."""


@dataclass(frozen=True, slots=True)
class Pulse:
    """received: bytes up to the last beat; missed: beats since the last byte."""

    received: int = 0
    missed: int = 0

    @property
    def silent(self) -> bool:
        return self.missed >= SILENT_BEATS


def beat(pulse: Pulse, received: int) -> Pulse:
    """One more. received: bytes up to now."""
    return Pulse(received, pulse.missed + 1 if received == pulse.received else 0)
