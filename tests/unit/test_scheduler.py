"""Batch forming: decode first, bounded prefill, admission in order, preemption of the youngest."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.router.scheduler import Limits, StepPlan, plan_step


@dataclass(frozen=True)
class State:
    length: int
    computed: int = 0
    held: int = 0
    shareable: int = 0
    idle: int = 0

    @property
    def sole(self) -> int:
        return self.held


LIMITS = Limits(page_tokens=16, chunk_tokens=32, max_running=4)


def counts(plan: StepPlan) -> list[tuple[int, int]]:
    return [(chunk.sequence, chunk.count) for chunk in plan.chunks]


def test_decode_rows_come_before_prefill_chunks() -> None:
    running = [State(100, 10, 7), State(50, 49, 4)]
    assert counts(plan_step(running, [], 10, LIMITS)) == [(1, 1), (0, 32)]


def test_prefill_shares_one_budget_oldest_first() -> None:
    running = [State(20, 0, 2), State(40, 0, 3), State(40, 0, 3)]
    assert counts(plan_step(running, [], 10, LIMITS)) == [(0, 20), (1, 12)]


def test_a_request_that_arrives_during_decode_joins_the_next_step() -> None:
    plan = plan_step([State(50, 49, 4)], [State(5)], 10, LIMITS)
    assert plan.admitted == (1,)
    assert counts(plan) == [(0, 1), (1, 5)]


def test_admission_needs_pages_for_all_present_tokens() -> None:
    plan = plan_step([], [State(100), State(1)], 6, LIMITS)
    assert plan == StepPlan(), "the first request lacks a page, and nobody overtakes it"
    assert plan_step([], [State(100), State(1)], 7, LIMITS).admitted == (0,)


def test_no_more_than_max_running() -> None:
    plan = plan_step([State(2, 1, 1)] * 3, [State(1), State(1)], 10, LIMITS)
    assert plan.admitted == (3,)


def test_the_youngest_is_preempted_when_pages_run_out() -> None:
    running = [State(17, 16, 1), State(17, 16, 1), State(20, 19, 2)]
    plan = plan_step(running, [State(1)], 0, LIMITS)
    assert plan.preempted == (2,)
    assert plan.admitted == (), "nobody is admitted over the head of a preempted request"
    assert [(c.sequence, c.pages) for c in plan.chunks] == [(0, 1), (1, 1)]


@dataclass(frozen=True)
class Job:
    """A request as the simulation below lives it."""

    prompt: int
    output: int
    length: int
    computed: int = 0
    held: int = 0
    shareable: int = 0
    idle: int = 0

    @property
    def sole(self) -> int:
        return self.held


@settings(max_examples=150)
@given(
    jobs=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 40)), min_size=1, max_size=12),
    pages=st.integers(7, 14),
    chunk=st.sampled_from([1, 7, 32]),
)
def test_everything_ends_and_pages_are_never_overdrawn(
    jobs: list[tuple[int, int]], pages: int, chunk: int
) -> None:
    """prompt + output <= 100 tokens <= 7 pages, so that every job fits alone, as the engine ensures."""
    limits = replace(LIMITS, chunk_tokens=chunk)
    waiting = [Job(prompt, output, prompt) for prompt, output in jobs]
    running: list[Job] = []
    free, steps, emitted = pages, 0, 0
    while running or waiting:
        plan = plan_step(running, waiting, free, limits)
        known: list[Job] = [*running, *waiting]
        assert plan.chunks, "a step with work to do computes something"
        for index in plan.preempted:
            free += known[index].held
            known[index] = replace(known[index], held=0, computed=0)
        prefill = 0
        for piece in plan.chunks:
            job = known[piece.sequence]
            prefill += piece.count if job.length - job.computed > 1 else 0
            free -= piece.pages
            job = replace(job, computed=job.computed + piece.count, held=job.held + piece.pages)
            assert job.held * limits.page_tokens >= job.computed
            if job.computed == job.length:
                job = replace(job, length=job.length + 1)
                emitted += 1
            known[piece.sequence] = job
        assert free >= 0
        assert prefill <= chunk
        assert len({c.sequence for c in plan.chunks}) == len(plan.chunks)
        keep = [i for i in range(len(running)) if i not in plan.preempted] + list(plan.admitted)
        queue = [*plan.preempted, *(i for i in range(len(running), len(known)) if i not in plan.admitted)]
        running, done = [], [i for i in keep if known[i].length == known[i].prompt + known[i].output]
        free += sum(known[i].held for i in done)
        running = [known[i] for i in keep if i not in done]
        waiting = [known[i] for i in queue]
        steps += 1
        assert steps < 20_000, "the schedule makes no progress"
    assert free == pages
    assert emitted == sum(output for _, output in jobs)


@pytest.mark.parametrize("free", [0, 3])
def test_the_plan_is_a_pure_function(free: int) -> None:
    running = [State(33, 32, 2), State(40, 0, 3)]
    assert plan_step(running, [State(9)], free, LIMITS) == plan_step(running, [State(9)], free, LIMITS)
