"""A progress bar on stderr for what takes longer than a second."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

PATIENCE_S = 1.0
"""Work that ends sooner shows nothing."""


@contextmanager
def progress_bar(
    title: str, clock: Callable[[], float] = time.monotonic
) -> Iterator[Callable[[int, int, str], None]]:
    """Yields report(done, total, what), to be called as the work goes on."""
    columns = TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    bar = Progress(*columns, TextColumn("{task.description}"), console=Console(stderr=True), transient=True)
    task = bar.add_task("", total=None)
    started = clock()

    def report(done: int, total: int, what: str) -> None:
        if not bar.live.is_started and clock() - started > PATIENCE_S:
            bar.start()
        bar.update(task, completed=done, total=total, description=what)

    try:
        yield report
    finally:
        if bar.live.is_started:
            bar.stop()
