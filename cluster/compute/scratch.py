"""Reusable arrays, so that a step allocates nothing once the largest batch has been seen."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

ALIGN = 64


def aligned(rows: int, width: int, dtype: npt.DTypeLike) -> np.ndarray:
    """[rows, width] zeros from a cache line's first byte on: no vector of 64 bytes then lies in two lines."""
    size = rows * width * np.dtype(dtype).itemsize
    raw = np.zeros(size + ALIGN, np.uint8)
    start = -raw.ctypes.data % ALIGN
    return raw[start : start + size].view(dtype).reshape(rows, width)


class Scratch:
    """Named arrays that only grow. A view is valid until the same name is asked for again."""

    def __init__(self) -> None:
        self._arrays: dict[str, np.ndarray] = {}

    def take(self, name: str, rows: int, width: int, dtype: npt.DTypeLike) -> np.ndarray:
        """[rows, width], C-contiguous, contents undefined."""
        array = self._arrays.get(name)
        if array is None or array.shape[0] < rows or array.shape[1] != width or array.dtype != dtype:
            capacity = 1 << max(0, rows - 1).bit_length()
            array = self._arrays[name] = aligned(capacity, width, dtype)
        return array[:rows]

    def vector(self, name: str, size: int, dtype: npt.DTypeLike) -> np.ndarray:
        """[size], contents undefined."""
        return self.take(name, size, 1, dtype).reshape(-1)
