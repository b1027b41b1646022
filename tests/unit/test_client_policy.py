"""What our own client does when a gateway is lost: scripted gateways, a clock of its own."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.cli.client import Client, connect
from cluster.errors import (
    ConfigError,
    InvalidRequest,
    MoemeshError,
    OtherWeights,
    Overloaded,
    Unavailable,
    UnknownModel,
)
from cluster.retry import Patience, Policy
from protos import generation_pb2 as pb

IDS = tuple(range(20, 40))
REQUEST = pb.GenerateRequest(text="abc", sampling=pb.Sampling(max_tokens=len(IDS), temperature=1.0))
LOST = Unavailable("lost")
Break = tuple[int, MoemeshError | None]


class Scripted:
    """Gateways that answer alike, each message with two tokens at most. breaks: of every call in its order,
    after how many tokens it ends, and with which error; None: without one, and without an end."""

    def __init__(self, *breaks: Break, per_call_s: float = 0.0) -> None:
        self.now = 0.0
        self.calls: list[tuple[str, pb.GenerateRequest]] = []
        self.pauses: list[float] = []
        self._breaks, self._per_call_s = iter(breaks), per_call_s

    def client(self, *names: str, policy: Policy | None = None) -> Client:
        gateways: Any = [_Gateway(name, self) for name in names]
        return Client(gateways, policy or Policy(), lambda: self.now, self._sleep)

    def _sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    def answer(self, name: str, request: pb.GenerateRequest) -> Iterator[pb.GenerateResponse]:
        self.calls.append((name, request))
        self.now += self._per_call_s
        most, error = next(self._breaks, (len(IDS), None))
        rest = IDS[request.resume_from :]
        yield pb.GenerateResponse(
            start=pb.Start(request_id=request.request_id or "drawn", seed=9, weights="w")
        )
        for place in range(0, min(most, len(rest)), 2):
            yield pb.GenerateResponse(token_ids=rest[place : min(place + 2, most)])
        if error is not None:
            raise error
        if most >= len(rest):
            yield pb.GenerateResponse(finish=pb.Finish(reason=pb.FINISH_REASON_LENGTH))

    def score(self) -> pb.ScoreResponse:
        _, error = next(self._breaks, (0, None))
        if error is not None:
            raise error
        return pb.ScoreResponse(logprobs=[1.0])


class _Gateway:
    def __init__(self, name: str, script: Scripted) -> None:
        self.address, self._script = name, script

    def __getattr__(self, name: str) -> Callable[..., Any]:
        assert name == "score"
        return lambda request: self._script.score()


@pytest.fixture(autouse=True)
def _scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Streams are asked of `Gateway.generate`, by that name."""
    monkeypatch.setattr(
        "cluster.cli.calls.Gateway.generate", lambda self, request: self._script.answer(self.address, request)
    )


def ids_of(client: Client, request: pb.GenerateRequest = REQUEST) -> list[int]:
    return [token for part in client.generate(request) for token in part.token_ids]


def called(script: Scripted) -> list[tuple[str, int]]:
    return [(name, request.resume_from) for name, request in script.calls]


def test_a_stream_that_breaks_goes_on_at_the_next_gateway_by_name_and_seed() -> None:
    script = Scripted((5, LOST))
    assert ids_of(script.client("a", "b")) == list(IDS)
    assert called(script) == [("a", 0), ("b", 5)]
    again = script.calls[1][1]
    assert (again.request_id, again.sampling.seed, again.sampling.temperature) == ("drawn", 9, 1.0)
    assert list(again.resumed_ids) == list(IDS[:5])
    assert (script.calls[0][1].weights, again.weights) == ("", "w")
    assert not REQUEST.request_id, "what the caller has given stays as it is"


@given(st.lists(st.tuples(st.integers(1, 7), st.sampled_from([LOST, None])), max_size=8), st.integers(1, 3))
def test_no_token_is_lost_or_repeated_however_often_it_breaks(breaks: list[Break], gateways: int) -> None:
    script = Scripted(*breaks)
    assert ids_of(script.client(*"abc"[:gateways])) == list(IDS)


def test_before_the_first_token_every_gateway_is_asked_once() -> None:
    script = Scripted((0, LOST), (0, LOST))
    assert ids_of(script.client("a", "b", "c")) == list(IDS)
    assert called(script) == [("a", 0), ("b", 0), ("c", 0)]
    script = Scripted((0, LOST), (0, LOST), (0, LOST))
    with pytest.raises(Unavailable):
        ids_of(script.client("a", "b"))
    assert called(script) == [("a", 0), ("b", 0)]


def test_after_tokens_it_is_tried_for_a_bounded_time_ever_less_often() -> None:
    script = Scripted((3, LOST), *itertools.repeat((0, LOST), 200), per_call_s=0.5)
    with pytest.raises(Unavailable):
        ids_of(script.client("a", "b"))
    assert 60.0 < script.now < 63.0
    assert script.pauses[:6] == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]


def test_a_token_renews_the_patience() -> None:
    old = Patience.new(0.0, Policy(give_up_s=1.0)).longer()
    assert old.tired(1.1)
    new = Patience.new(1.1, old.policy)
    assert (new.tired(2.0), new.pause_s) == (False, 0.1)


@pytest.mark.parametrize("error", [OtherWeights("other"), UnknownModel("other")])
def test_a_stream_ends_when_every_gateway_in_a_row_serves_another_model(error: MoemeshError) -> None:
    script = Scripted((4, LOST), (0, error), (2, LOST), (0, error))
    assert ids_of(script.client("a", "b")) == list(IDS)
    assert called(script) == [("a", 0), ("b", 4), ("a", 4), ("b", 6), ("a", 6)]
    script = Scripted((4, LOST), (0, error), (0, error))
    with pytest.raises(type(error)):
        ids_of(script.client("a", "b"))
    assert called(script) == [("a", 0), ("b", 4), ("a", 4)]


@pytest.mark.parametrize("error", [OtherWeights("other"), UnknownModel("other")])
def test_a_gateway_that_is_away_may_serve_the_same_model_when_it_is_back(error: MoemeshError) -> None:
    script = Scripted((4, LOST), (0, error), (0, LOST), (0, error), (8, None))
    assert ids_of(script.client("a", "b")) == list(IDS)
    assert called(script)[:5] == [("a", 0), ("b", 4), ("a", 4), ("b", 4), ("a", 4)]


@pytest.mark.parametrize("error", [InvalidRequest("no"), Overloaded("full")])
def test_other_errors_are_raised_at_once(error: MoemeshError) -> None:
    script = Scripted((4, error))
    with pytest.raises(type(error)):
        ids_of(script.client("a", "b"))
    assert len(script.calls) == 1


def test_several_samples_begin_elsewhere_but_do_not_go_on() -> None:
    request = pb.GenerateRequest(sampling=pb.Sampling(n=2))
    assert ids_of(Scripted((0, LOST)).client("a", "b"), request) == list(IDS)
    script = Scripted((4, LOST))
    with pytest.raises(Unavailable):
        ids_of(script.client("a", "b"), request)
    assert len(script.calls) == 1


def test_what_is_asked_as_a_whole_is_asked_once_of_each() -> None:
    assert Scripted((0, LOST)).client("a", "b").score(pb.ScoreRequest()).logprobs == [1.0]
    with pytest.raises(Unavailable):
        Scripted((0, LOST), (0, LOST)).client("a", "b").score(pb.ScoreRequest())
    with pytest.raises(Overloaded):
        Scripted((0, Overloaded("full"))).client("a", "b").score(pb.ScoreRequest())


def test_addresses_come_with_commas_or_one_by_one() -> None:
    for addresses in ("h:1,h:2", ["h:1", "h:2"], ["h:1, h:2"]):
        with connect(addresses) as client:
            assert [gateway.address for gateway in client._gateways] == ["h:1", "h:2"]
    with pytest.raises(ConfigError, match="--address"), connect(","):
        pass
