"""When a router counts as silent, and when a request has lost too many of them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cluster.gateway.pulse import SILENT_BEATS, Pulse, beat
from cluster.gateway.replay import MOST_LOSSES, Losses, one_more


@given(st.lists(st.integers(0, 3), max_size=40))
def test_a_router_is_silent_after_so_many_beats_without_a_byte(arriving: list[int]) -> None:
    """arriving: bytes between two beats."""
    pulse, received = Pulse(), 0
    for place, count in enumerate(arriving):
        received += count
        pulse = beat(pulse, received)
        quiet = arriving[max(0, place + 1 - SILENT_BEATS) : place + 1]
        assert pulse.silent is (len(quiet) == SILENT_BEATS and not any(quiet))


@given(st.lists(st.integers(0, 2), max_size=20))
def test_losses_count_while_no_token_comes_between_them(gained: list[int]) -> None:
    """gained: tokens since the loss before."""
    losses, tokens, row = Losses(), 0, 0
    for count in gained:
        tokens += count
        row = 1 if count else row + 1
        losses = one_more(losses, tokens)
        assert (losses.in_row, losses.tokens, losses.too_many) == (row, tokens, row > MOST_LOSSES)
