"""A blob on its way into a folder: received into a file beside it, checked, renamed when it is whole.

    DIR/<sha256>.part    what has come so far; the next attempt goes on behind it, whoever sends the rest

Nobody reads a blob under its name before all its bytes were there and matched its digest.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from cluster.errors import CannotStore, CorruptBlob
from cluster.library.format import BlobRef

SUFFIX = ".part"
HASH_BYTES = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Busy(Exception):
    """Another process or thread receives the same blob into the same folder."""


class Incoming:
    """Use as a context manager: it holds the file and a lock on it; what was received stays after it.

    target: the file that it becomes. Every method raises CannotStore where the folder takes nothing, and
    entering raises Busy.
    """

    def __init__(self, target: Path, ref: BlobRef) -> None:
        self._target, self._ref = target, ref
        self._part = target.with_name(ref.sha256 + SUFFIX)
        self._file: BinaryIO | None = None
        self._digest = hashlib.sha256()
        self.length = 0
        """Bytes received so far, those of earlier attempts included."""

    @property
    def whole(self) -> bool:
        return self.length == self._ref.bytes

    def __enter__(self) -> Self:
        try:
            self._target.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._open()
            self._hash_what_is_there()
            self._check_room()
        except BaseException as error:
            self._close()
            if isinstance(error, OSError):
                raise self._cannot_write(error) from error
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def add(self, data: bytes | memoryview) -> None:
        """The bytes behind `length`. Raises CorruptBlob for more than the blob has."""
        assert self._file is not None, "within its context"
        if self.length + len(data) > self._ref.bytes:
            self.discard()
            raise CorruptBlob(f"more than the {self._ref.bytes} bytes of blob {self._ref.sha256} came")
        try:
            left = memoryview(data)
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            if error.errno in _FULL:
                self.discard()  # a disk that is full for a blob that nobody can use helps nobody
            raise self._cannot_write(error) from error
        self._digest.update(data)
        self.length += len(data)

    def finish(self) -> None:
        """All bytes are there: check them and give the file its name. Raises CorruptBlob, and then begins
        anew: nothing of what was received stays."""
        assert self._file is not None, "within its context"
        if self._digest.hexdigest() != self._ref.sha256:
            self.discard()
            raise CorruptBlob(f"what came for blob {self._ref.sha256} does not match its digest")
        try:
            os.fsync(self._file.fileno())
            self._part.replace(self._target)
        except OSError as error:
            raise self._cannot_write(error) from error

    def discard(self) -> None:
        """Forget what was received."""
        assert self._file is not None, "within its context"
        self._file.seek(0)
        self._file.truncate()
        self.length, self._digest = 0, hashlib.sha256()

    def _open(self) -> BinaryIO:
        """The part file, locked. Whoever had the lock before may have renamed or removed it meanwhile."""
        while True:
            file = open(self._part, "ab+", buffering=0)  # noqa: SIM115 - held until the context ends
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(file.fileno()), os.stat(self._part)):
                    return file
            except FileNotFoundError:
                pass
            except BlockingIOError:
                file.close()
                raise Busy from None
            file.close()

    def _hash_what_is_there(self) -> None:
        assert self._file is not None
        self._file.seek(0)
        while data := self._file.read(HASH_BYTES):
            self._digest.update(data)
            self.length += len(data)
        if self.length > self._ref.bytes:
            self.discard()

    def _check_room(self) -> None:
        lack = self._ref.bytes - self.length - shutil.disk_usage(self._target.parent).free
        if lack > 0:
            raise CannotStore(self._no_room(f"{lack} bytes lack"))

    def _close(self) -> None:
        if self._file is not None:
            if self.length == 0 and self._ref.bytes:
                self._part.unlink(missing_ok=True)
            self._file.close()  # and with it the lock
            self._file = None

    def _cannot_write(self, error: OSError) -> CannotStore:
        if error.errno in _FULL:
            return CannotStore(self._no_room(str(error.strerror)))
        return CannotStore(f"cannot write {self._part}: {error.strerror}; mend the folder")

    def _no_room(self, why: str) -> str:
        return (
            f"no room in {self._target.parent} for blob {self._ref.sha256[:12]} of {self._ref.bytes} bytes: "
            f"{why}; make room there"
        )
