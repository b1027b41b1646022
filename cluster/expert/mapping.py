"""Many files behind one another in one range of addresses, so that kernels need one array and offsets.

The standard library's mmap cannot choose an address, hence libc by ctypes: a range is reserved without memory
behind it, then each file is mapped over its own pages of the range.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kernels import layout

U8 = npt.NDArray[np.uint8]

PAGE = mmap.PAGESIZE
MAP_FIXED = 0x10
"""The same on Linux, macOS and the BSDs; the mmap module has no name for it."""

PROT_NONE = 0
MAP_FAILED = ctypes.c_void_p(-1).value


def map_files(files: Sequence[tuple[Path, int]]) -> tuple[U8, list[int]]:
    """files: (path, bytes > 0) each -> (read-only array over all of them, byte offset of each in it).

    Offsets are multiples of the page size; what lies between a file's end and the next page reads as zero.
    The pages are unmapped when the array and every view of it are gone. Raises OSError where this system
    cannot do it.
    """
    libc = _libc()
    starts, total = [], 0
    for _, size in files:
        starts.append(total)
        total += layout.pad(size, PAGE)
    address = _mmap(libc, None, total, PROT_NONE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1)
    memory = (ctypes.c_uint8 * total).from_address(address)
    # Every view refers to `memory`, so a forgotten one keeps its pages instead of reading unmapped ones.
    weakref.finalize(memory, libc.munmap, address, total).atexit = False
    for (path, size), start in zip(files, starts, strict=True):
        with path.open("rb") as file:
            _mmap(libc, address + start, size, mmap.PROT_READ, mmap.MAP_PRIVATE | MAP_FIXED, file.fileno())
    array = np.frombuffer(memoryview(memory), np.uint8)
    array.flags.writeable = False
    return array, starts


def _libc() -> ctypes.CDLL:
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
        libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    except (TypeError, AttributeError) as error:
        raise OSError("this system's C library has no mmap") from error
    return libc


def _mmap(libc: ctypes.CDLL, at: int | None, size: int, protection: int, flags: int, fd: int) -> int:
    address: int | None = libc.mmap(at, size, protection, flags, fd, 0)
    if address is None or address == MAP_FAILED:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return address
