"""Numbers that are the same on every machine and with every numpy: integer arithmetic and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np

F = np.float32

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))


class Draws:
    """A stream of draws: the outputs of splitmix64 from `seed` on, in the order they are asked for."""

    def __init__(self, seed: int) -> None:
        self._drawn, self._seed = 0, np.uint64(seed)

    def words(self, count: int) -> np.ndarray:
        """[count] uint64."""
        steps = np.arange(self._drawn + 1, self._drawn + count + 1, dtype=np.uint64)
        self._drawn += count
        z = self._seed + steps * _GAMMA
        z = (z ^ (z >> _SHIFTS[0])) * _MIX[0]
        z = (z ^ (z >> _SHIFTS[1])) * _MIX[1]
        return z ^ (z >> _SHIFTS[2])

    def integers(
        self, low: int, high: int, shape: int | tuple[int, ...], dtype: Any = np.int64
    ) -> np.ndarray:
        """low <= integer < high. The bias of the remainder does not matter here."""
        words = self.words(int(np.prod(shape))) % np.uint64(high - low)
        return (words.astype(np.int64) + low).astype(dtype).reshape(shape)

    def permutation(self, count: int) -> np.ndarray:
        return np.argsort(self.words(count), kind="stable")

    def floats(self, *shape: int) -> np.ndarray:
        """float32 in -4..4, some forty times that, some denormals, some zeros of both signs."""
        x = (self.integers(-(2**20), 2**20, shape) / 2**18).astype(F)
        flat = x.reshape(-1)
        flat[:: max(1, flat.size // 7)] *= F(40)
        flat[3::97] = F(1e-41)
        flat[5::101] = 0
        flat[6::103] = -0.0
        return x
