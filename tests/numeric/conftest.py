"""What tests of kernels draw from and compare with."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20)


@pytest.fixture
def same_bits() -> Callable[[np.ndarray, np.ndarray], None]:
    """Assert that two arrays are the same bytes, and show where they are not."""

    def check(actual: np.ndarray, expected: np.ndarray) -> None:
        assert actual.dtype == expected.dtype
        assert actual.shape == expected.shape
        word = np.dtype(f"u{actual.dtype.itemsize}")
        bits, wanted = (np.ascontiguousarray(a).view(word) for a in (actual, expected))
        different = np.argwhere(bits != wanted)
        if len(different):
            at = tuple(different[0])
            what = f"first at {at}: {actual[at]!r}, not {expected[at]!r}"
            pytest.fail(f"{len(different)} of {actual.size} differ, {what}")

    return check
