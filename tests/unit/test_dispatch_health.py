"""What a router thinks of a node, over all that can happen to one, with a clock of the test's own."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.dispatch import health
from cluster.dispatch.health import FIRST_HOLD_S, FORGIVE, MOST_HOLD_S, Health, Standing, hold_s

EVENTS = (health.heard, health.doubted, health.struck, health.due, health.proven)

histories = st.lists(st.tuples(st.floats(0.0, 30.0), st.sampled_from(EVENTS)), max_size=60)


def story(history):
    """(now, standing before, after) of every event."""
    now, one, told = 0.0, Health(), []
    for pause, event in history:
        now += pause
        after = event(one, now)
        told.append((now, event, one, after))
        one = after
    return told


def test_the_way_out_and_back() -> None:
    one = health.doubted(Health(), 1.0)
    assert one.standing is Standing.SUSPECT
    assert one.serves
    assert health.heard(one, 1.1).standing is Standing.ALIVE
    one = health.struck(one, 2.0)
    assert (one.standing, one.strikes, one.until) == (Standing.SUSPENDED, 1, 2.0 + FIRST_HOLD_S)
    assert not one.serves
    assert health.due(one, 2.0 + FIRST_HOLD_S / 2) is one
    one = health.due(one, 2.0 + FIRST_HOLD_S)
    assert one.standing is Standing.PROBING
    assert not one.serves
    one = health.proven(one, 3.0)
    assert (one.standing, one.strikes) == (Standing.ALIVE, 1)


@given(histories)
def test_only_a_probe_leads_back_and_only_after_the_whole_suspension(history) -> None:
    for now, event, before, after in story(history):
        if not before.serves and after.serves:
            assert before.standing is Standing.PROBING
            assert event is health.proven
        if before.standing is Standing.SUSPENDED and after is not before:
            assert now >= before.until
            assert after.standing is Standing.PROBING


@given(histories)
def test_a_strike_suspends_whoever_is_not_suspended_yet(history) -> None:
    for now, event, before, after in story(history):
        if event is health.struck:
            assert after.standing is Standing.SUSPENDED
            if before.standing is not Standing.SUSPENDED:
                assert after.until == now + hold_s(after.strikes)
                assert after.strikes in (1, before.strikes + 1)


@given(st.lists(st.floats(0.0, FORGIVE * FIRST_HOLD_S * 0.99), min_size=2, max_size=40))
def test_a_node_that_keeps_failing_is_away_twice_as_long_every_time(spells: list[float]) -> None:
    """However short or long it is well in between, as long as it is not forgiven."""
    now, one, holds = 0.0, Health(), []
    for spell in spells:
        one = health.struck(one, now)
        holds.append(one.until - now)
        one = health.due(one, one.until)
        one = health.proven(one, one.since)
        now = one.since + min(spell, FORGIVE * holds[-1] * 0.99)
    for first, second in pairwise(holds):
        assert second == pytest.approx(min(2 * first, MOST_HOLD_S))


def test_a_long_spell_without_a_strike_is_forgiveness() -> None:
    one = health.struck(health.struck(Health(), 0.0), 0.1)
    assert one.strikes == 1
    one = health.struck(health.due(one, 10.0), 10.0)
    assert one.strikes == 2
    back = health.proven(health.due(one, one.until), one.until)
    soon, later = one.until + 1.0, one.until + FORGIVE * hold_s(2)
    assert health.struck(back, soon).strikes == 3
    assert health.struck(back, later).strikes == 1


@pytest.mark.parametrize(("strikes", "seconds"), [(1, 0.5), (2, 1.0), (5, 8.0), (8, 60.0), (1000, 60.0)])
def test_holds(strikes: int, seconds: float) -> None:
    assert hold_s(strikes) == seconds
