"""Stop strings: any cut of a text into tokens gives the same text, and never a part of a character."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from hypothesis import example, given
from hypothesis import strategies as st

from cluster.model.text_stream import StopText, TextStream
from support.gateways import byte_tokenizer

TOKENIZER = byte_tokenizer()
ALPHABET = "ab\né€😀"  # one to four bytes, so that characters span tokens
texts = st.text(ALPHABET, max_size=30)
stops = st.lists(st.text(ALPHABET, min_size=1, max_size=4), min_size=1, max_size=3)


def naive(text: str, stops: Sequence[str]) -> tuple[str, str | None]:
    """Character by character: the first stop string to be complete, of several the longest."""
    for end in range(len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            longest = max(complete, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(texts, stops, st.lists(st.integers(0, 30), max_size=8))
@example("ab", ["b", "ab"], [])
@example("aab", ["ab"], [1, 2])
@example("€€", ["€€"], [])
def test_any_cut_gives_the_same_text(text: str, stops: list[str], cuts: list[int]) -> None:
    bounds = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    stream = StopText(stops)
    shown = "".join(stream.push(text[a:b]) for a, b in itertools.pairwise(bounds))
    assert (shown + stream.flush(), stream.found) == naive(text, stops)


@given(texts, stops, st.integers(1, 5))
def test_tokens_stop_where_the_text_does(text: str, stops: list[str], group: int) -> None:
    ids = TOKENIZER.encode(text) if text else []
    stream = TextStream(TOKENIZER, stops)
    shown, used = "", 0
    for first in range(0, len(ids), group):
        piece, taken = stream.push(ids[first : first + group])
        assert "\ufffd" not in piece
        shown, used = shown + piece, used + taken
        if stream.stopped is not None:
            break
    else:
        shown += stream.flush()
    expected, stop = naive(text, stops)
    assert (shown, stream.stopped) == (expected, stop)
    if stop is not None:
        assert used == len((expected + stop).encode()), "ids are taken up to the one that completes the stop"


@given(texts, stops)
def test_what_may_begin_a_stop_string_is_held_back_and_nothing_else(text: str, stops: list[str]) -> None:
    stream = StopText(stops)
    shown = ""
    for place, character in enumerate(text, 1):
        shown += stream.push(character)
        if stream.found is not None:
            return
        held = text[len(shown) : place]
        possible = [n for stop in stops for n in range(len(stop)) if text[:place].endswith(stop[:n])]
        assert len(held) == max(possible)


def test_without_stop_strings_nothing_is_held_back() -> None:
    stream = TextStream(TOKENIZER)
    assert stream.push(TOKENIZER.encode("User:")) == ("User:", 5)
    assert stream.flush() == ""
    assert stream.stopped is None


def test_a_half_character_at_the_end_is_replaced() -> None:
    stream = TextStream(TOKENIZER, ["x"])
    assert stream.push(TOKENIZER.encode("€")[:2]) == ("", 2)
    assert stream.flush() == "\ufffd"
