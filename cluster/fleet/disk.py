"""How fast the disk under a folder is: a small file, written through to it and read back from it."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

CHUNK_BYTES = 4 << 20
FILE_BYTES = 32 << 20
LIMIT_S = 1.0
"""Of writing and of reading; a chunk that was begun is ended. 10 MB/s write two chunks in it."""


@dataclass(frozen=True)
class DiskSpeed:
    """Bytes per second. folder: where it was measured; free_bytes: left there for this user."""

    folder: str
    write: float
    read: float
    free_bytes: int


def existing(folder: Path) -> Path:
    """The folder, or where it would be made: the first above it that exists."""
    return next(each for each in (folder, *folder.parents) if each.is_dir())


def disk_speed(folder: Path, clock: Callable[[], float] = time.perf_counter) -> DiskSpeed:
    """Measure where `folder` is, or would be. Takes up to about 2 s and 32 MiB; nothing is left, also if the
    process is killed. Raises OSError where nothing can be written."""
    place = existing(folder)
    with tempfile.TemporaryFile(dir=place, buffering=0) as file:
        number = file.fileno()
        chunk = os.urandom(CHUNK_BYTES)  # no file system compresses it
        written, write_s = _timed(lambda: _write(number, chunk), clock)
        with suppress(AttributeError, OSError):  # else memory is measured, where it cannot be helped
            os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
        os.lseek(number, 0, os.SEEK_SET)
        read, read_s = _timed(lambda: len(os.read(number, CHUNK_BYTES)), clock, written)
    disk = os.statvfs(place)
    return DiskSpeed(str(place), written / write_s, read / read_s, disk.f_bavail * disk.f_frsize)


def _write(file: int, chunk: bytes) -> int:
    """Until the disk has it."""
    count = os.write(file, chunk)
    os.fsync(file)
    return count


def _timed(step: Callable[[], int], clock: Callable[[], float], most: int = FILE_BYTES) -> tuple[int, float]:
    """Bytes that steps moved, and the seconds they took: until there are enough of either."""
    total, took, begin = 0, 0.0, clock()
    while total < most and took < LIMIT_S:
        total += step()
        took = clock() - begin
    return total, max(took, 1e-9)
