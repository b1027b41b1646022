"""The line of waiting requests: fair over keys, ordered within one, bounded, and nobody starves."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.gateway.line import HEADWAY, LEAST_WAIT_S, Full, Line, longest_wait, turn_every

KEYS = ("a", "b", "c")


def drain(line: Line[Any]) -> list[Any]:
    order = []
    while (entry := line.first()) is not None:
        line.let_in(entry)
        order.append(entry)
    return order


@given(st.lists(st.tuples(st.sampled_from(KEYS), st.integers(1, 100)), min_size=1, max_size=60))
def test_a_key_with_more_requests_gets_no_more_than_its_part(requests: list[tuple[str, int]]) -> None:
    """While two keys wait, what they have been given differs by no more than a request of each."""
    line: Line[int] = Line(10_000)
    for number, (key, tokens) in enumerate(requests):
        line.push(number, key, tokens=tokens)
    order = drain(line)
    assert sorted(order) == list(range(len(requests)))
    given_to: Counter[str] = Counter()
    left_of = Counter(key for key, _ in requests)
    for number in order:
        key, tokens = requests[number]
        given_to[key] += tokens
        left_of[key] -= 1
        for other in KEYS:
            if left_of[key] and left_of[other]:
                assert abs(given_to[key] - given_to[other]) <= 200
    for key in KEYS:
        mine = [number for number in order if requests[number][0] == key]
        assert mine == sorted(mine), "a key's own requests keep their order"


def test_a_newcomer_is_not_punished_for_having_been_away() -> None:
    line: Line[str] = Line(100)
    for number in range(6):
        line.push(f"old{number}", "old", tokens=10)
    for _ in range(3):
        line.let_in(str(line.first()))
    assert line.ahead("new", 0) == 0
    for number in range(3):
        line.push(f"new{number}", "new", tokens=10)
    assert drain(line) == ["new0", "old3", "new1", "old4", "new2", "old5"], "nor is it given the time before"


def test_whoever_leaves_without_a_turn_puts_nobody_back() -> None:
    """Work that was never let in is no time that passed for others."""
    line: Line[str] = Line(100)
    for number in range(5):
        line.push(f"a{number}", "a", tokens=10)
    assert line.drop("a4")
    line.push("b0", "b", tokens=10)
    assert drain(line) == ["a0", "b0", "a1", "a2", "a3"]


def test_priority_goes_first_but_not_for_ever() -> None:
    line: Line[str] = Line(100_000)
    line.push("patient", "b", tokens=10)
    line.push("urgent", "b", tokens=10, priority=1)
    assert line.first() == "urgent"
    line.let_in("urgent")
    passed = number = 0
    while True:
        line.push(f"u{number}", "a", tokens=100, priority=1)
        entry = line.first()
        assert entry is not None
        line.let_in(entry)
        if entry == "patient":
            break
        passed += 100
        number += 1
    assert passed <= HEADWAY + 200


@given(st.lists(st.tuples(st.sampled_from(KEYS), st.integers(1, 4)), max_size=60), st.integers(0, 20))
def test_places_are_bounded_and_one_key_leaves_half(requests: list[tuple[str, int]], most: int) -> None:
    line: Line[int] = Line(most)
    held: Counter[str] = Counter()
    for number, (key, sequences) in enumerate(requests):
        if line.full(key, sequences) is None:
            line.push(number, key, tokens=1, sequences=sequences)
            held[key] += sequences
        assert line.sequences == held.total() <= most
    if len({key for key, _ in requests}) == 1:
        largest = max((sequences for _, sequences in requests), default=0)
        assert held.total() <= max(largest, (most + largest) / 2)


def test_a_key_alone_leaves_room_that_another_gets() -> None:
    line: Line[int] = Line(8)
    number = 0
    while line.full("greedy", 1) is None:
        line.push(number, "greedy", tokens=1)
        number += 1
    assert number == 4
    assert line.full("greedy", 1) == Full(waiting=4, free=4, own=True)
    assert line.full("other", 1) is None
    shared: Line[int] = Line(8)
    for number in range(8):
        assert shared.full("", 1) is None, "without keys all places are everybody's"
        shared.push(number, "", tokens=1)
    assert shared.full("", 1) == Full(waiting=8, free=0, own=False)


def test_whoever_has_gone_is_not_next() -> None:
    line: Line[str] = Line(10)
    for name in ("x", "y", "z"):
        line.push(name, "k", tokens=1)
    assert line.drop("x")
    assert not line.drop("x")
    assert line.first() == "y"
    assert (len(line), line.sequences) == (2, 2)


def test_a_place_comes_free_once_in_the_time_that_a_sequence_holds_it() -> None:
    assert turn_every(4.0, places=32) == 0.125
    assert turn_every(0.0, places=32) == 0.0, "nobody is refused before anything is known"


@pytest.mark.parametrize(
    ("service_s", "longest"), [(0.0, 5.0), (0.1, LEAST_WAIT_S), (4.0, 1.0), (1000.0, 5.0)]
)
def test_a_request_waits_for_a_part_of_its_own_time_at_most(service_s: float, longest: float) -> None:
    assert longest_wait(service_s, share=0.25, most_s=5.0) == longest
