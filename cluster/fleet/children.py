"""Processes that serve something for this one and end with it: for measurements, without Ray."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection as Pipe
from typing import Any

from cluster.errors import StartFailed

START_S = 60.0
END_S = 5.0


@dataclass(frozen=True)
class Child:
    """word: what it said when it served."""

    word: str
    pid: int
    pipe: Pipe

    def tell(self, command: str) -> None:
        """It reads commands with `pipe.recv()`."""
        self.pipe.send(command)


@contextmanager
def children(target: Callable[..., None], arguments: Sequence[tuple[Any, ...]]) -> Iterator[list[str]]:
    """As `family`; yields what they say."""
    with family(target, arguments) as started:
        yield [child.word for child in started]


@contextmanager
def family(target: Callable[..., None], arguments: Sequence[tuple[Any, ...]]) -> Iterator[list[Child]]:
    """Run `target(pipe, *values)` in a process of its own for each of `arguments`; yields them.

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
        yield [
            Child(_word(pipe), process.pid or 0, pipe) for process, pipe in zip(started, pipes, strict=True)
        ]
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
