"""Ranges are covered once, and nobody still writes when `run` returns, also when a part fails."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from cluster.compute.threads import Workers


@pytest.fixture(params=[1, 2, 3])
def workers(request: pytest.FixtureRequest) -> Iterator[Workers]:
    made = Workers(request.param)
    yield made
    made.close()


@pytest.mark.parametrize("items", [0, 1, 2, 3, 7])
def test_every_item_is_worked_on_once(workers: Workers, items: int) -> None:
    done = np.zeros(items, np.int64)

    def kernel(out: Any, begin: int, end: int) -> None:
        out[begin:end] += 1

    workers.run(kernel, items, done)
    workers.run_each(kernel, items, lambda thread: (done,))
    assert done.tolist() == [2] * items


def test_shares_are_as_they_were_cut(workers: Workers) -> None:
    taken: list[tuple[int, int]] = []
    bounds = [0, 5, 6, 20][: workers.threads + 1]

    def kernel(begin: int, end: int) -> None:
        taken.append((begin, end))

    workers.run_shares(kernel, bounds)
    assert sorted(taken) == list(itertools.pairwise(bounds))


def test_scratch_is_given_by_thread(workers: Workers) -> None:
    scratch = [np.zeros(1, np.int64) for _ in range(workers.threads)]

    def kernel(own: Any, begin: int, end: int) -> None:
        own[0] += end - begin

    workers.run_each(kernel, 6, lambda thread: (scratch[thread],))
    assert [own[0] for own in scratch] == [6 // workers.threads] * workers.threads


@pytest.mark.parametrize("part", ["first", "last"])
def test_a_failing_part_is_raised_once_the_others_have_ended(part: str) -> None:
    workers, other_ended = Workers(2), threading.Event()

    def kernel(begin: int, end: int) -> None:
        if (begin == 0) == (part == "first"):
            raise ArithmeticError("broken")
        other_ended.wait(0.05)  # nobody sets it: long enough for the failing part to be first
        other_ended.set()

    with pytest.raises(ArithmeticError, match="broken"):
        workers.run(kernel, 2)
    assert other_ended.is_set()
    workers.close()


def test_no_threads_are_no_workers() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Workers(0)
