"""Our own compute threads: they run nogil kernels over ranges of work items."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any

import numpy as np

from cluster.errors import MoemeshError
from kernels import maths

Kernel = Callable[..., None]


SMALLEST_NORMAL = np.float32(2.0**-126)


def check_float_mode() -> None:
    """Raises MoemeshError if the calling thread flushes denormals to zero: its bits would differ."""
    if not maths.keeps_denormals(SMALLEST_NORMAL):
        raise MoemeshError(
            "this thread flushes denormal numbers to zero, which changes results; "
            "a library built with -ffast-math was loaded into the process: remove it"
        )


class Workers:
    """`threads` - 1 helper threads and the caller itself.

    Every kernel takes its range of work items as its last two arguments, and its results do not depend
    on how the items are split: one thread or many, the same bits. Helpers sleep in a queue; they never
    spin, since a machine is shared with other actors. (numba's own `parallel=True` is not used: its
    workqueue layer aborts on concurrent use, its OpenMP layer dies after a fork.)
    """

    def __init__(self, threads: int = 1) -> None:
        if threads < 1:
            raise ValueError(f"threads must be at least 1, not {threads}")
        check_float_mode()
        self.threads = threads
        self._tasks: SimpleQueue[tuple[Kernel, tuple[Any, ...], SimpleQueue[BaseException | None]] | None]
        self._tasks = SimpleQueue()
        self._helpers: list[threading.Thread] = []

    def run(self, kernel: Kernel, items: int, *args: Any) -> None:
        """kernel(*args, begin, end) over all of range(items); returns when every part is done."""
        if self.threads == 1 or items <= 1:
            kernel(*args, 0, items)
            return
        self._split(kernel, self._equal(items), [args] * self.threads)

    def run_shares(self, kernel: Kernel, bounds: Sequence[int], *args: Any) -> None:
        """As `run`; share i is the items bounds[i]..bounds[i + 1], and there are at most `threads`."""
        if len(bounds) == 2:
            kernel(*args, bounds[0], bounds[1])
        else:
            self._split(kernel, bounds, [args] * (len(bounds) - 1))

    def run_each(self, kernel: Kernel, items: int, args: Callable[[int], tuple[Any, ...]]) -> None:
        """As `run`, for kernels that need scratch of their own: args(number of the thread), from 0."""
        if self.threads == 1 or items <= 1:
            kernel(*args(0), 0, items)
            return
        self._split(kernel, self._equal(items), [args(number) for number in range(self.threads)])

    def _equal(self, items: int) -> list[int]:
        parts = min(self.threads, items)
        return [items * part // parts for part in range(parts + 1)]

    def _split(self, kernel: Kernel, bounds: Sequence[int], args: Sequence[tuple[Any, ...]]) -> None:
        parts = len(bounds) - 1
        if not self._helpers:
            self._start()
        done: SimpleQueue[BaseException | None] = SimpleQueue()
        for part in range(1, parts):
            self._tasks.put((kernel, (*args[part], bounds[part], bounds[part + 1]), done))
        try:
            kernel(*args[0], bounds[0], bounds[1])
        finally:  # nobody may still write to the arrays when the caller goes on
            failures = [done.get() for _ in range(1, parts)]
        for failure in failures:
            if failure is not None:
                raise failure

    def close(self) -> None:
        for _ in self._helpers:
            self._tasks.put(None)
        for helper in self._helpers:
            helper.join()
        self._helpers = []

    def _start(self) -> None:
        for number in range(1, self.threads):
            helper = threading.Thread(target=self._work, name=f"compute-{number}", daemon=True)
            helper.start()
            self._helpers.append(helper)

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            kernel, args, done = task
            try:
                check_float_mode()
                kernel(*args)
            except BaseException as failure:  # handed to the caller of run, who raises it
                done.put(failure)
            else:
                done.put(None)
