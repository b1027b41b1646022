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


class Started:
    """A process that was started: wait for it with `child`, end it with `end`."""

    def __init__(self, target: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        """Run `target(pipe, *arguments)` in it. It sends one word (its address) when it serves, and ends when
        its `pipe.recv()` raises EOFError."""
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=target, args=(theirs, *arguments), daemon=True)
        self._process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        return self._process.pid or 0

    def tell(self, command: str) -> None:
        """As `Child.tell`; it reads it when it serves."""
        self._pipe.send(command)

    def child(self) -> Child:
        """Once it serves. Raises StartFailed if it says nothing within START_S."""
        return Child(_word(self._pipe), self.pid, self._pipe)

    def release(self) -> None:
        """Let it end by itself."""
        self._pipe.close()

    def end(self) -> None:
        """Returns when it is gone, killed if it takes longer than END_S."""
        self.release()
        self._process.join(END_S)
        self.kill()

    def kill(self) -> None:
        """Returns when it is gone."""
        self.release()
        if self._process.is_alive():
            self._process.kill()
        self._process.join()
        self._process.close()


@contextmanager
def family(target: Callable[..., None], arguments: Sequence[tuple[Any, ...]]) -> Iterator[list[Child]]:
    """A process as `Started` for each of `arguments`; all are gone when the context ends. Raises
    StartFailed."""
    started: list[Started] = []
    try:
        started += [Started(target, values) for values in arguments]
        yield [each.child() for each in started]
    finally:
        for each in started:
            each.release()
        for each in started:
            each.end()


def _word(pipe: Pipe) -> str:
    if not pipe.poll(START_S):
        raise StartFailed(f"a process did not start within {START_S:g} s")
    try:
        return str(pipe.recv())
    except EOFError:
        raise StartFailed("a process ended while it started") from None
