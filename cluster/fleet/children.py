"""Processes that serve something for this one and end with it: for measurements, without Ray."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection as Pipe
from typing import Any

from cluster.errors import StartFailed

START_S = 60.0
END_S = 5.0


@contextmanager
def children(target: Callable[..., None], arguments: Sequence[tuple[Any, ...]]) -> Iterator[list[str]]:
    """Run `target(pipe, *values)` in a process of its own for each of `arguments`; yields what they say.

    A child sends one word (its address) when it serves, and ends when its `pipe.recv()` raises EOFError.
    Raises StartFailed if a child says nothing within START_S. All are gone when the context ends.
    """
    context = multiprocessing.get_context("spawn")
    started, pipes = [], []
    try:
        for values in arguments:
            ours, theirs = context.Pipe()
            process = context.Process(target=target, args=(theirs, *values), daemon=True)
            process.start()
            theirs.close()
            started.append(process)
            pipes.append(ours)
        yield [_word(pipe) for pipe in pipes]
    finally:
        for pipe in pipes:
            pipe.close()
        for process in started:
            process.join(END_S)
            if process.is_alive():
                process.kill()
                process.join()
            process.close()


def _word(pipe: Pipe) -> str:
    if not pipe.poll(START_S):
        raise StartFailed(f"a process did not start within {START_S:g} s")
    try:
        return str(pipe.recv())
    except EOFError:
        raise StartFailed("a process ended while it started") from None
