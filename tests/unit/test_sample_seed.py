"""Seeds of the samples of one request."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cluster.types import SEEDS, sample_seed

seeds = st.integers(0, SEEDS - 1)


@given(seeds)
def test_the_first_sample_has_the_requests_own_seed(seed: int) -> None:
    assert sample_seed(seed, 0) == seed


@given(seeds)
def test_seeds_differ_and_fit(seed: int) -> None:
    found = [sample_seed(seed, i) for i in range(64)]
    assert len(set(found)) == 64
    assert all(0 <= value < SEEDS for value in found)


def test_they_are_splitmix64s_outputs() -> None:
    """The published first outputs from state 1234567."""
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [sample_seed(1234567, i) for i in (1, 2, 3)] == expected
