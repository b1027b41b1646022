"""Counted work on stderr: how far it is and at what."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cluster.cli.output import Progress


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int, str], None]]:
    """Yields report(done, total, what), to be called as the work goes on."""
    with Progress() as progress:
        yield lambda done, total, what: progress.phase(f"{title} {what} {done}/{total}")
