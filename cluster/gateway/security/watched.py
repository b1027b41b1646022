"""A value read from files, and read again when one of them changes."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from cluster.errors import MoemeshError

log = logging.getLogger(__name__)

T = TypeVar("T")

State = tuple[tuple[int, int, int], ...]


class Watched(Generic[T]):
    """`current()` is as new as the files are; callable from any thread.

    What is there but cannot be read leaves the value before in force: certificate and key are replaced one
    after the other, and a server must not stop in between. The first reading raises what `read` raises.
    """

    def __init__(self, paths: Sequence[Path], read: Callable[[], T]) -> None:
        self._paths = tuple(paths)
        self._read = read
        self._lock = threading.Lock()
        self._seen = self._state()
        self._value = read()

    def current(self) -> T:
        state = self._state()
        if state == self._seen:
            return self._value
        with self._lock:
            if state != self._seen:
                self._reload(state)
        return self._value

    def _reload(self, state: State) -> None:
        try:
            self._value = self._read()
        except MoemeshError as error:
            log.warning("what was read before stays in force: %s", error)
        else:
            log.info("read again: %s", ", ".join(path.name for path in self._paths))
        self._seen = state

    def _state(self) -> State:
        return tuple(_stamp(path) for path in self._paths)


def _stamp(path: Path) -> tuple[int, int, int]:
    try:
        found = path.stat()
    except OSError:
        return (0, 0, 0)
    return (found.st_mtime_ns, found.st_size, found.st_ino)
