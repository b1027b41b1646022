"""A folder of files named by their SHA-256: written once, checked before they are used."""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cluster.errors import CorruptBlob
from cluster.library.format import BlobRef

U8 = npt.NDArray[np.uint8]

_AGAIN = "pack the model again or fetch the library again"


class BlobFolder:
    """Readers check length and digest of every byte they hand out, and raise CorruptBlob if they differ."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def file(self, ref: BlobRef) -> Path:
        return self.path / ref.sha256

    def has(self, ref: BlobRef) -> bool:
        """Whether the file is there, with the right length; its digest is another matter."""
        try:
            return os.stat(self.file(ref)).st_size == ref.bytes
        except OSError:
            return False

    def is_right(self, ref: BlobRef) -> bool:
        """Whether the file is there with the right bytes, all of which it reads."""
        try:
            self.map(ref)
        except (CorruptBlob, OSError):
            return False
        return True

    def missing(self, refs: Iterable[BlobRef]) -> tuple[BlobRef, ...]:
        """Those of `refs` that it does not have."""
        return tuple(ref for ref in refs if not self.has(ref))

    def write(self, data: bytes | memoryview) -> BlobRef:
        """Store `data` under its digest; equal bytes are stored once."""
        ref = BlobRef(hashlib.sha256(data).hexdigest(), len(data))
        if not self.file(ref).exists():
            self.file(ref).write_bytes(data)
        return ref

    def read(self, ref: BlobRef) -> bytes:
        self.check_length(ref)  # before allocating what a broken manifest may claim
        data = bytearray(ref.bytes)
        self.read_into(ref, memoryview(data))
        return bytes(data)

    def read_into(self, ref: BlobRef, target: memoryview) -> None:
        """Fill `target` (exactly ref.bytes long) from disk and check it."""
        self.check_length(ref)
        with self.file(ref).open("rb", buffering=0) as file:
            done = 0
            while done < ref.bytes and (n := file.readinto(target[done:])):
                done += n
        self.check_digest(ref, target)

    def map(self, ref: BlobRef) -> U8:
        """The blob as a read-only array over mapped pages, checked; unmapped when the array goes."""
        self.check_length(ref)
        if ref.bytes == 0:  # cannot be mapped
            return np.frombuffer(self.read(ref), np.uint8)
        with self.file(ref).open("rb") as file:
            data = np.frombuffer(mmap.mmap(file.fileno(), ref.bytes, access=mmap.ACCESS_READ), np.uint8)
        self.check_digest(ref, data.data)
        return data

    def check_length(self, ref: BlobRef) -> None:
        """Raises CorruptBlob unless the file is there with the right length."""
        try:
            found = os.stat(self.file(ref)).st_size
        except (FileNotFoundError, NotADirectoryError):
            raise CorruptBlob(f"blob {self.file(ref)} is missing; {_AGAIN}") from None
        except OSError as error:
            raise CorruptBlob(f"cannot read blob {self.file(ref)}: {error.strerror}") from error
        if found != ref.bytes:
            raise CorruptBlob(f"blob {self.file(ref)} has {found} bytes, expected {ref.bytes}; {_AGAIN}")

    def check_digest(self, ref: BlobRef, data: memoryview) -> None:
        found = hashlib.sha256(data).hexdigest()
        if found != ref.sha256:
            raise CorruptBlob(
                f"blob {self.file(ref)} has the digest {found}, expected {ref.sha256}; {_AGAIN}"
            )
