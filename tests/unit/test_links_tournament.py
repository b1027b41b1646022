"""Rounds in which every pair of hosts has its turn."""

from itertools import chain, combinations

from hypothesis import given
from hypothesis import strategies as st

from cluster.fleet.links.tournament import rounds


@given(st.integers(0, 40))
def test_every_pair_meets_once_and_nobody_twice_in_a_round(count):
    found = rounds(range(count))
    assert sorted(tuple(sorted(pair)) for pair in chain(*found)) == list(combinations(range(count), 2))
    for pairs in found:
        players = list(chain(*pairs))
        assert len(players) == len(set(players))


@given(st.integers(2, 40))
def test_there_are_no_more_rounds_than_needed(count):
    assert len(rounds(range(count))) == (count if count % 2 else count - 1)
