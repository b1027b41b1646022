"""What is read off the streams of a failover."""

from __future__ import annotations

import numpy as np
import pytest

from cluster.cli.bench import Case
from cluster.cli.bench_failover import APART, ROUTERS, copies_of, fault_of
from cluster.cli.bench_gateways import GatewayLoss, clients, gateway_results, until_all_go_on
from cluster.cli.bench_routers import most_delayed, wrong_tokens
from cluster.experiments.live.failover import Course, Observed, as_expected, in_copies, summed_up
from cluster.experiments.live.faults import Fault
from cluster.experiments.live.streams import Stream
from cluster.library.bundled import open_model

COURSE = Course(1.0, 2.0, 3.0)
FAULT_AT = 100.0


def stream(*times: float, tokens: list[int] | None = None, error: str = "", ended: bool = False) -> Stream:
    """times: beside the fault."""
    found = tokens if tokens is not None else list(range(len(times)))
    return Stream(0, found, [FAULT_AT + each for each in times], error, ended)


def observed(*streams: Stream, expected: int = 100) -> Observed:
    return summed_up(streams, [list(range(expected))], FAULT_AT, COURSE, 0.0)


def test_gaps_are_of_one_stream_and_belong_to_the_time_of_their_end() -> None:
    found = observed(stream(-2.5, -1.9, -0.1, 0.4), stream(0.41, 0.5), stream(-9.0, -5.0))
    assert found.gaps_before == pytest.approx([0.6, 1.8])  # what ends before the measurement is warm-up
    assert sorted(found.gaps_after) == pytest.approx([0.09, 0.5])
    assert found.longest_gap_s == pytest.approx(0.5)


def test_the_way_back_ends_with_the_first_window_that_is_full_enough() -> None:
    slow, quick = np.arange(0.0, 3.0, 0.5), np.arange(3.0, 5.0, 0.1)
    found = observed(stream(*slow, *quick))
    assert found.back_s(1.0) == 0.0
    assert 2.0 <= found.back_s(8.0) <= 3.05
    assert found.back_s(1000.0) == float("inf")
    assert observed(stream(-1.0, -0.5, 0.5, 0.6)).rate_before(2.0) == 1.0


@pytest.mark.parametrize(
    ("one", "right"),
    [
        (stream(0.1, 0.2), True),
        (stream(0.1, 0.2, tokens=[0, 2]), False),
        (stream(0.1, 0.2, error="NodeLost: gone", ended=True), True),  # its error is told as such
        (stream(*range(5), ended=True), True),
        (stream(*range(4), ended=True), False),
    ],
)
def test_every_token_counts_and_a_stream_that_ends_well_has_all(one: Stream, right: bool) -> None:
    assert as_expected(one, list(range(5))) is right
    found = observed(one, stream(0.3, 0.4), expected=5)
    assert found.identical is right
    assert found.failed == bool(one.error)


def test_every_expert_is_on_so_many_nodes() -> None:
    library = open_model()
    for copies in (1, 2):
        table = in_copies(library, 3, copies)
        assert {len(set(h)) for layer in table.replicas for h in layer} == {copies}
        assert len({len(table.experts_of(node)) for node in table.nodes}) == 1


def test_cases() -> None:
    assert fault_of(Case.sole) is Fault.kill
    of_nodes = [case for case in Case if case not in APART]
    assert [copies_of(case) for case in of_nodes] == [2, 2, 2, 2, 1]
    assert set(ROUTERS.values()) == {Fault.kill, Fault.freeze}
    assert fault_of(Case.cut) is Fault.cut


@pytest.mark.parametrize(
    ("tokens", "ended", "wrong"),
    [
        ([0, 1, 2], False, 0),
        ([0, 2, 3], False, 2),  # one was lost
        ([0, 1, 1, 2, 3], False, 3),  # one was repeated
        ([0, 1, 2], True, 2),  # the end is missing
        ([0, 1, 2, 3, 4, 4], True, 1),
    ],
)
def test_tokens_that_a_stream_should_not_have_are_counted(tokens: list[int], ended: bool, wrong: int) -> None:
    assert wrong_tokens(stream(tokens=tokens, ended=ended), range(5)) == wrong


def test_the_streams_of_the_lost_router_are_those_that_waited_longest() -> None:
    streams = [stream(-3.0, -0.1, 0.2), stream(-0.1, 1.0), stream(-0.2, 0.5, 0.6), stream(-5.0, -1.0)]
    assert most_delayed(streams, FAULT_AT, 2) == [streams[1], streams[2]]


def test_all_go_on_once_the_last_request_has_a_token() -> None:
    other = Stream(1, [0, 1], [FAULT_AT - 0.1, FAULT_AT + 2.5])
    streams = [stream(-0.2, 0.1), other, Stream(1, [0], [FAULT_AT + 4.0])]
    assert until_all_go_on(streams, FAULT_AT, 2) == pytest.approx(2.5)
    assert until_all_go_on(streams, FAULT_AT, 3) == float("inf")


def test_streams_begin_at_the_gateways_in_turn() -> None:
    with clients({"gateway-0": "h:1", "gateway-1": "h:2"}, 4) as each:
        assert [client.address for client in each] == ["h:1", "h:2", "h:1", "h:2"]


def test_figures_of_a_lost_gateway() -> None:
    loss = GatewayLoss(observed(stream(-1.0, -0.5, 1.5)), wrong=0, resumed=1, on_s=1.5)
    found = {one.id.rpartition(".")[2]: one.value for one in gateway_results("x", [loss], COURSE)}
    assert found["failed_requests"] == found["tokens_lost_or_repeated"] == 0
    assert (found["longest_gap"], found["all_go_on"], found["resumed"]) == (2.0, 1.5, 1)
