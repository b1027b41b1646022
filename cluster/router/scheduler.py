"""Continuous batching as a pure function: which rows go into the next step.

Decode rows first, then prefill chunks up to a budget, oldest first; a waiting sequence is admitted when
pages for all of its present tokens are free. When a running sequence needs a page and none is left, the
youngest running sequence is preempted: its pages are given back and its tokens recomputed later, to the
same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol


class SequenceState(Protocol):
    """What the scheduler reads of a sequence; it changes nothing.

    length: tokens known (prompt and generated); computed: tokens whose K and V are stored;
    held: KV pages it holds, of which nobody else holds `sole`.
    shareable: full pages of its first tokens, computed by others, that a waiting sequence gets when it is
    admitted; idle: how many of them nobody holds, so that they are free pages now.
    """

    @property
    def length(self) -> int: ...
    @property
    def computed(self) -> int: ...
    @property
    def held(self) -> int: ...
    @property
    def sole(self) -> int: ...
    @property
    def shareable(self) -> int: ...
    @property
    def idle(self) -> int: ...


@dataclass(frozen=True)
class Chunk:
    """`count` tokens of the sequence, from its first token that is not computed; `pages` to add first."""

    sequence: int
    count: int
    pages: int


@dataclass(frozen=True)
class StepPlan:
    """Indices are into `running` followed by `waiting`, as they were given to `plan_step`.

    preempted are released before anything is allocated, youngest first; admitted join `running` in this
    order; chunks are the rows of the step, decode rows first.
    """

    preempted: tuple[int, ...] = ()
    admitted: tuple[int, ...] = ()
    chunks: tuple[Chunk, ...] = ()


@dataclass(frozen=True)
class Limits:
    """page_tokens: tokens a page; chunk_tokens: prefill tokens a step; max_running: sequences in a batch."""

    page_tokens: int
    chunk_tokens: int
    max_running: int


@dataclass
class _Draft:
    free: int
    budget: int
    chunks: list[Chunk] = field(default_factory=list)


def plan_step(
    running: Sequence[SequenceState], waiting: Sequence[SequenceState], free_pages: int, limits: Limits
) -> StepPlan:
    """The next step. Pure: the same states give the same plan.

    running: oldest first. waiting: in the order they will be admitted.
    """
    alive, preempted, free = _make_room(running, free_pages, limits)
    draft = _Draft(free, limits.chunk_tokens)
    prefilling = [i for i in alive if _uncomputed(running[i], limits) > 1]
    for i in alive:
        if _uncomputed(running[i], limits) == 1:
            _add(draft, i, running[i], 1, limits)
    for i in prefilling:
        _add(draft, i, running[i], draft.budget, limits)
    admitted = [] if preempted else _admit(draft, len(alive), len(running), waiting, limits)
    return StepPlan(tuple(preempted), tuple(admitted), tuple(draft.chunks))


def _missing(state: SequenceState, limits: Limits) -> int:
    """Pages a sequence lacks to hold all the tokens it has now."""
    return max(0, -(-state.length // limits.page_tokens) - state.held - state.shareable)


def _uncomputed(state: SequenceState, limits: Limits) -> int:
    return state.length - state.computed - state.shareable * limits.page_tokens


def _make_room(
    running: Sequence[SequenceState], free: int, limits: Limits
) -> tuple[list[int], list[int], int]:
    """Preempt the youngest until the rest can hold all of their tokens."""
    alive = list(range(len(running)))
    preempted: list[int] = []
    need = sum(_missing(state, limits) for state in running)
    while need > free and len(alive) > 1:
        victim = alive.pop()
        preempted.append(victim)
        free += running[victim].sole
        need -= _missing(running[victim], limits)
    return alive, preempted, free


def _add(draft: _Draft, index: int, state: SequenceState, most: int, limits: Limits) -> None:
    left = _uncomputed(state, limits)
    count = min(left, most)
    if count < 1:
        return
    pages = _missing(state, limits)
    draft.free -= pages + state.idle
    if left > 1:
        draft.budget -= count
    draft.chunks.append(Chunk(index, count, pages))


def _admit(
    draft: _Draft, alive: int, offset: int, waiting: Sequence[SequenceState], limits: Limits
) -> list[int]:
    admitted: list[int] = []
    for i, state in enumerate(waiting):
        full = alive + len(admitted) >= limits.max_running or draft.budget < 1
        if full or _missing(state, limits) + state.idle > draft.free:
            break  # strictly in order: a large request is not overtaken for ever
        admitted.append(offset + i)
        _add(draft, offset + i, state, draft.budget, limits)
    return admitted
