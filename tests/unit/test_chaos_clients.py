"""Clients against a scripted gateway: what they do in each manner, and that their history tells the truth."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable

import pytest

from cluster.experiments.chaos import history as h
from cluster.experiments.chaos.check import Answer, Wrong, check
from cluster.experiments.chaos.clients import Call, CallFailed, Client, Part
from cluster.experiments.chaos.history import History
from cluster.experiments.chaos.workload import Manner, Question, Turn
from cluster.retry import Policy
from cluster.types import SamplingParams

IDS = tuple(range(20, 32))
ANSWER = Answer(IDS, tuple(token + 1000 for token in IDS), "length")
QUESTION = Question((1, 2, 3), SamplingParams(max_tokens=len(IDS)))


class Gateways:
    """A Caller whose gateways answer alike. fails: calls, from 0, that break, and after how many tokens.
    skip: tokens that every call but the first leaves out."""

    def __init__(self, fails: dict[int, tuple[str, int]] | None = None, skip: int = 0) -> None:
        self.calls: list[tuple[str, Call]] = []
        self._fails, self._skip = fails or {}, skip
        self._aborted = False

    async def generate(self, gateway: str, call: Call) -> AsyncGenerator[Part, None]:
        number = len(self.calls)
        self.calls.append((gateway, call))
        code, most = self._fails.get(number, ("", len(IDS)))
        start = len(call.had) + (self._skip if number else 0)
        for sent, place in enumerate(range(start, len(IDS))):
            if sent >= most:
                raise CallFailed(code, "Unavailable", sent, "why")
            if self._aborted:
                yield Part((), (), "aborted", place)
                return
            await asyncio.sleep(0)
            yield Part((IDS[place],), (IDS[place] + 1000,))
        yield Part((), (), "length", len(IDS))

    async def abort(self, gateway: str, request: str) -> None:
        self._aborted = True


QUICK = Policy(first_s=0.0, most_s=0.0)


def history_of(gateways: Gateways, manner: Manner, after: int = 4, policy: Policy = QUICK) -> list[h.Event]:
    history = History()
    client = Client(1, gateways, ["gateway-0", "gateway-1"], [QUESTION], history, policy)
    asyncio.run(client.request("1-0", Turn(0, manner, after, 0.0, 0.0)))
    return history.events


def names(events: list[h.Event]) -> list[str]:
    return [event.name for event in events if event.name != "tokens"]


@pytest.mark.parametrize(
    ("manner", "told"),
    [
        (Manner.whole, ["asked", "ended"]),
        (Manner.leave, ["asked", "left"]),
        (Manner.resume, ["asked", "left", "asked", "ended"]),
        (Manner.abort, ["asked", "ended"]),
    ],
)
def test_what_a_client_does(manner, told) -> None:
    gateways = Gateways()
    events = history_of(gateways, manner)
    assert names(events) == told
    assert check(events, [ANSWER]) == []
    starts = [len(call.had) for _, call in gateways.calls]
    assert starts == ([0, 4] if manner is Manner.resume else [0])
    assert all((call.window_s > 0) == (manner is Manner.resume) for _, call in gateways.calls)


def test_a_client_goes_on_at_another_gateway() -> None:
    gateways = Gateways({0: ("UNAVAILABLE", 3), 1: ("UNAVAILABLE", 0)})
    events = history_of(gateways, Manner.whole)
    assert names(events) == ["asked", "failed", "asked", "failed", "asked", "ended"]
    assert [(gateway, len(call.had)) for gateway, call in gateways.calls] == [
        ("gateway-1", 0),
        ("gateway-0", 3),
        ("gateway-1", 3),
    ]
    assert {violation.wrong for violation in check(events, [ANSWER])} == {
        Wrong.wrong_error
    }  # no fault was there


def test_a_client_gives_up_in_the_end() -> None:
    impatient = Policy(give_up_s=-1.0)
    events = history_of(Gateways({0: ("UNAVAILABLE", 3)}), Manner.whole, policy=impatient)
    assert names(events) == ["asked", "failed", "gave-up"]
    assert Wrong.no_end in {violation.wrong for violation in check(events, [ANSWER])}


def test_no_second_call_after_a_deadline() -> None:
    events = history_of(Gateways({0: ("DEADLINE_EXCEEDED", 3)}), Manner.deadline)
    assert names(events) == ["asked", "failed"]
    assert check(events, [ANSWER]) == []


@pytest.mark.parametrize(("skip", "wrong"), [(1, Wrong.lost_token), (-1, Wrong.repeated_token)])
def test_a_gateway_that_resumes_at_the_wrong_place_is_caught(skip, wrong) -> None:
    events = history_of(Gateways(skip=skip), Manner.resume)
    assert wrong in {violation.wrong for violation in check(events, [ANSWER])}


def test_a_stream_without_an_end_is_asked_for_again() -> None:
    class Cut(Gateways):
        async def generate(self, gateway: str, call: Call) -> AsyncGenerator[Part, None]:
            async for part in super().generate(gateway, call):
                if not part.reason or len(self.calls) > 1:
                    yield part

    events = history_of(Cut(), Manner.whole)
    failed = [event for event in events if isinstance(event, h.Failed)]
    assert [event.code for event in failed] == ["UNKNOWN"]


def test_clients_stop_between_requests() -> None:
    history, gateways = History(), Gateways()
    client = Client(0, gateways, ["gateway-0"], [QUESTION], history)

    async def ask() -> None:
        stop = asyncio.Event()
        turns = iter([Turn(0, Manner.whole, 1, 0.0, 0.0)] * 2 + [stopping(stop)] * 5)
        await client.ask((turn() if callable(turn) else turn for turn in turns), stop)

    asyncio.run(ask())
    assert [event.request for event in history.events if isinstance(event, h.Ended)] == ["0-0", "0-1"]


def stopping(stop: asyncio.Event) -> Callable[[], Turn]:
    def turn() -> Turn:
        stop.set()
        return Turn(0, Manner.whole, 1, 0.0, 0.0)

    return turn
