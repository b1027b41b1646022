"""What a router thinks of a node, and how it changes its mind. Pure: values and `now` in, values out.

    ALIVE ──── quiet for PING_AFTER_S while it owes an answer: it is asked whether it is there ───► SUSPECT
    SUSPECT ── any byte of it ──► ALIVE
    any ────── silent for SILENT_S, late beyond its deadline, or its connection broke: a strike ──► SUSPENDED
    SUSPENDED ─ its time is over ──► PROBING ── it has answered a probe and a copy of some rows ──► ALIVE

A suspended node gets rows only of experts that nobody else holds. Every further strike doubles the time that
it stays away, and only a long spell without one makes them count no more: a node that comes and goes does so
ever more rarely.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

PING_AFTER_S = 0.1
SILENT_S = 0.4
"""A process that is alive answers a PING in well under a millisecond, unless others keep it from the core."""

FIRST_HOLD_S = 0.5
MOST_HOLD_S = 60.0
FORGIVE = 20.0
"""Strikes are forgotten after so many times the last suspension, spent without another one."""


class Standing(Enum):
    ALIVE = "alive"
    SUSPECT = "suspect"
    SUSPENDED = "suspended"
    PROBING = "probing"


@dataclass(frozen=True, slots=True)
class Health:
    """since: when it came to stand so, seconds. strikes: that still count. until: end of a suspension."""

    standing: Standing = Standing.ALIVE
    since: float = 0.0
    strikes: int = 0
    until: float = 0.0

    @property
    def serves(self) -> bool:
        """Whether it is to be given rows that others could compute."""
        return self.standing is Standing.ALIVE or self.standing is Standing.SUSPECT


def hold_s(strikes: int) -> float:
    """Seconds of the suspension that comes with strike number `strikes` ≥ 1."""
    doublings = min(strikes - 1, 62)
    return float(min(FIRST_HOLD_S * 2**doublings, MOST_HOLD_S))


def heard(health: Health, now: float) -> Health:
    """A byte has come."""
    return replace(health, standing=Standing.ALIVE, since=now) if _is(health, Standing.SUSPECT) else health


def doubted(health: Health, now: float) -> Health:
    """It owes an answer and has been quiet for PING_AFTER_S."""
    return replace(health, standing=Standing.SUSPECT, since=now) if _is(health, Standing.ALIVE) else health


def struck(health: Health, now: float) -> Health:
    """It was silent or late, or its connection broke. One that is suspended already stays so."""
    if _is(health, Standing.SUSPENDED):
        return health
    kept = 0 if _forgiven(health, now) else health.strikes
    strikes = kept + 1
    return Health(Standing.SUSPENDED, now, strikes, now + hold_s(strikes))


def due(health: Health, now: float) -> Health:
    """The time of its suspension may be over."""
    over = _is(health, Standing.SUSPENDED) and now >= health.until
    return replace(health, standing=Standing.PROBING, since=now) if over else health


def proven(health: Health, now: float) -> Health:
    """It has computed rows in time while it was on probation."""
    return replace(health, standing=Standing.ALIVE, since=now) if _is(health, Standing.PROBING) else health


def _is(health: Health, standing: Standing) -> bool:
    return health.standing is standing


def _forgiven(health: Health, now: float) -> bool:
    if not health.strikes or _is(health, Standing.PROBING):
        return not health.strikes
    return now - health.until >= FORGIVE * hold_s(health.strikes)
