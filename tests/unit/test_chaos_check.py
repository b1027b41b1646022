"""Whatever is wrong with a history is found, and named; nothing else is."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Mapping
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.experiments.chaos import history as h
from cluster.experiments.chaos.check import FDS_SLACK, THREADS_SLACK, Answer, Wrong, check
from cluster.experiments.chaos.history import History, from_lines, to_line
from cluster.experiments.chaos.promises import EFFECT_S, PROMISES, Promise
from cluster.experiments.chaos.resources import Sample, growth
from cluster.experiments.chaos.schedule import Kind

IDS = (11, 12, 13, 14, 15, 16, 17, 18)
BITS = tuple(100 + token for token in IDS)
ANSWER = Answer(IDS, BITS, "length")


def asked(t: float = 0.0, start: int = 0, manner: str = "whole", request: str = "r") -> h.Asked:
    return h.Asked(t, request, 0, manner, "gateway-0", start)


def tokens(t: float, *ids: int, request: str = "r") -> h.Tokens:
    return h.Tokens(t, request, ids, tuple(100 + each for each in ids))


def ended(t: float = 9.0, reason: str = "length", completion: int = len(IDS)) -> h.Ended:
    return h.Ended(t, "r", reason, completion)


def failed(t: float, code: str = "UNAVAILABLE", emitted: int | None = 0) -> h.Failed:
    return h.Failed(t, "r", code, "Unavailable", emitted, "why")


def fault(kind: Kind, begin: float, end: float) -> list[h.Event]:
    return [h.Begun(begin, 0, kind.value, "victim"), h.Over(end, 0)]


BREAKABLE = PROMISES | {Kind.kill_router: Promise(frozenset({"UNAVAILABLE"}))}
"""As if streams ended with their router."""


def wrongs(*events: h.Event, promises: Mapping[Kind, Promise] = PROMISES) -> list[Wrong]:
    ordered = sorted(events, key=lambda event: event.t)
    return [violation.wrong for violation in check(ordered, [ANSWER], promises)]


def test_a_whole_answer() -> None:
    assert wrongs(asked(), tokens(1, *IDS[:3]), tokens(2, *IDS[3:]), ended()) == []


@pytest.mark.parametrize(
    ("came", "wrong"),
    [
        ((*IDS[:3], *IDS[4:]), Wrong.lost_token),
        ((*IDS[:3], *IDS[5:]), Wrong.lost_token),
        ((*IDS[:3], *IDS[2:]), Wrong.repeated_token),
        ((*IDS, IDS[-1]), Wrong.repeated_token),
        ((*IDS[:3], 99, *IDS[4:]), Wrong.wrong_bits),
        ((*IDS, 99), Wrong.wrong_bits),
    ],
)
def test_tokens_that_do_not_fit(came, wrong) -> None:
    assert wrong in wrongs(asked(), tokens(1, *came), ended())


def test_the_same_token_with_other_bits() -> None:
    other = h.Tokens(1, "r", IDS, (*BITS[:-1], BITS[-1] ^ 1))
    assert wrongs(asked(), other, ended()) == [Wrong.wrong_bits]


def test_tokens_over_several_calls_are_one_answer() -> None:
    resumed = (asked(manner="resume"), tokens(1, *IDS[:3]), h.Left(2, "r", back=True), asked(3, start=3))
    assert wrongs(*resumed, tokens(4, *IDS[3:]), ended()) == []
    assert wrongs(*resumed, tokens(4, *IDS[4:]), ended()) == [Wrong.lost_token, Wrong.lost_token]
    assert Wrong.repeated_token in wrongs(*resumed, tokens(4, *IDS[2:]), ended())


def test_an_end_that_comes_too_early() -> None:
    short = wrongs(asked(), tokens(1, *IDS[:-1]), ended(completion=7))
    assert short == [Wrong.lost_token, Wrong.wrong_end]
    assert wrongs(asked(), tokens(1, *IDS), ended(reason="aborted")) == [Wrong.wrong_end]
    assert wrongs(asked(), tokens(1, *IDS), ended(completion=9)) == [Wrong.wrong_end]


def test_what_clients_end_themselves() -> None:
    aborted = ended(reason="aborted", completion=4)
    assert wrongs(asked(manner="abort"), tokens(1, *IDS[:3]), aborted) == []
    assert wrongs(asked(manner="leave"), tokens(1, *IDS[:3]), h.Left(2, "r", back=False)) == []
    late = failed(2, "DEADLINE_EXCEEDED", None)
    assert wrongs(asked(manner="deadline"), tokens(1, *IDS[:3]), late) == []
    assert Wrong.wrong_error in wrongs(asked(manner="whole"), tokens(1, *IDS[:3]), late)


@pytest.mark.parametrize(
    "last",
    [asked(), tokens(1, *IDS[:3]), h.Left(2, "r", back=True), h.GaveUp(70, "r")],
    ids=lambda event: event.name,
)
def test_a_request_without_an_end(last) -> None:
    events = [asked()] if last == asked() else [asked(), last]
    assert wrongs(*events) == [Wrong.no_end]


@pytest.mark.parametrize("kind", list(Kind))
def test_errors_are_as_promised(kind) -> None:
    again = (asked(3.1, start=2), tokens(4, *IDS[2:]), ended())
    history = (asked(), tokens(1, *IDS[:2]), failed(3, emitted=2), *again)
    explained = "UNAVAILABLE" in PROMISES[kind].errors
    assert wrongs(*history, *fault(kind, 2, 3)) == ([] if explained else [Wrong.wrong_error])
    assert wrongs(*history, *fault(kind, 8, 9)) == [Wrong.wrong_error]  # afterwards


def test_an_error_long_after_its_fault() -> None:
    later = 2 + EFFECT_S
    history = (asked(later), failed(later + 1), asked(later + 2), tokens(later + 3, *IDS), ended(later + 4))
    assert wrongs(*history, *fault(Kind.kill_gateway, 1, 2)) == []
    assert wrongs(*history, *fault(Kind.kill_gateway, 0, 1)) == [Wrong.wrong_error]


@pytest.mark.parametrize("emitted", [None, 1, 3])
def test_an_error_tells_how_many_tokens_were_sent(emitted) -> None:
    history = (
        asked(),
        tokens(1, *IDS[:2]),
        failed(3, emitted=emitted),
        asked(4, start=2),
        tokens(5, *IDS[2:]),
    )
    told = wrongs(*history, ended(), *fault(Kind.kill_router, 2, 3), promises=BREAKABLE)
    assert told == [Wrong.wrong_count]
    gone = wrongs(*history, ended(), *fault(Kind.kill_gateway, 2, 3))
    assert gone == ([] if emitted is None else [Wrong.wrong_count])  # a dead gateway tells nothing


def test_backpressure_is_no_error_before_the_first_token() -> None:
    refused = failed(1, "RESOURCE_EXHAUSTED")
    assert wrongs(asked(), refused, asked(2), tokens(3, *IDS), ended()) == []
    later = failed(2, "RESOURCE_EXHAUSTED", 2)
    rest = (asked(3, start=2), tokens(4, *IDS[2:]), ended())
    assert wrongs(asked(), tokens(1, *IDS[:2]), later, *rest) == [Wrong.wrong_error]


def test_a_pause_that_is_too_long() -> None:
    most = PROMISES[Kind.kill_node].gap_s
    events = (asked(), tokens(1, *IDS[:2]), tokens(1.5 + most, *IDS[2:]), ended(2 + most))
    assert wrongs(*events, *fault(Kind.kill_node, 1, 2)) == [Wrong.long_gap]
    left = (asked(manner="resume"), tokens(1, *IDS[:2]), h.Left(2, "r", back=True), asked(50, start=2))
    assert wrongs(*left, tokens(51, *IDS[2:]), ended(52)) == []  # the client's own


def held(first: bool, **changes: object) -> h.Held:
    at_rest = h.Held(0 if first else 9, "router-0", "router", first, {"running": 0}, 6, 28, 1 << 28)
    return dataclasses.replace(at_rest, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [{"owed": {"running": 1}}, {"fds": 29 + FDS_SLACK}, {"threads": 7 + THREADS_SLACK}],
    ids=lambda changes: next(iter(changes)),
)
def test_what_is_not_returned(changes) -> None:
    assert wrongs(held(True), held(False)) == []
    assert wrongs(held(True), held(False, **changes)) == [Wrong.not_returned]
    assert wrongs(held(True), held(False, process="router-1", **changes)) == [Wrong.not_returned]


def test_what_does_not_come_back() -> None:
    assert wrongs(h.Unhealed(5, "not ready: node-1")) == [Wrong.not_healed]


@given(st.integers(1, len(IDS) - 1), st.lists(st.integers(1, len(IDS) - 1), max_size=3))
def test_answers_in_any_pieces_are_fine(cut, cuts) -> None:
    edges = [0, *sorted({cut, *cuts}), len(IDS)]
    pieces = [tokens(1 + at, *IDS[at:to]) for at, to in pairwise(edges)]
    assert wrongs(asked(), *pieces, ended(20)) == []


def test_a_history_is_read_as_it_was_written() -> None:
    file, clock = io.StringIO(), iter([10.0, 11.0, 12.5])
    history = History(file, lambda: next(clock))
    history.add(h.Tokens, request="r", ids=(1, 2), bits=(3, 4))
    history.add(h.Begun, number=0, kind=Kind.kill_node.value, victim="node-0")
    assert from_lines(file.getvalue().splitlines()) == history.events
    assert [event.t for event in history.events] == [1.0, 2.5]
    others = [asked(), ended(), failed(1, emitted=None), h.Left(2, "r", back=True), held(True), h.Stopped(3)]
    assert from_lines(map(to_line, others)) == others
    assert set(json.loads(to_line(h.Stopped(3)))) == {"event", "t"}


def samples(rss_per_s: float, fds: int = 20, count: int = 30) -> list[Sample]:
    return [
        Sample(10.0 * k, 7, "node-0", int((200 << 20) + 10 * k * rss_per_s), fds, 6) for k in range(count)
    ]


def test_memory_that_grows_is_seen() -> None:
    assert {one.what for one in growth(samples(0.0))} == {"rss", "fds", "threads"}
    assert all(one.flat for one in growth(samples(0.0)))
    grown = [one.what for one in growth(samples(200 << 10)) if not one.flat]
    assert grown == ["rss"]
    assert growth(samples(0.0, count=8)) == []  # too few to tell


def test_a_process_of_the_same_name_is_another() -> None:
    restarted = [dataclasses.replace(one, pid=8, rss=2 * one.rss) for one in samples(0.0)]
    assert all(one.flat for one in growth([*samples(0.0), *restarted]))
