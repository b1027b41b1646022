"""What the gateway counts of requests, on a clock of the test's own."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from cluster.gateway.meter import BETWEEN_TOKENS_S, FAILED, FIRST_TOKEN_S, WHOLE_S, Histogram, Meter


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@given(values=st.lists(st.floats(0, 1e4), max_size=50))
def test_a_histogram_counts_what_is_at_most_its_bounds(values: Sequence[float]) -> None:
    histogram = Histogram((0.1, 1.0, 10.0))
    for value in values:
        histogram.observe(value)
    naive = [float(sum(value <= bound for value in values)) for bound in (0.1, 1.0, 10.0)]
    assert [count for _, count in histogram.cumulative()] == [*naive, float(len(values))]
    assert histogram.count == len(values)
    assert histogram.cumulative()[-1][0] == "+Inf"


def test_bounds_rise() -> None:
    for bounds in (FIRST_TOKEN_S, BETWEEN_TOKENS_S, WHOLE_S):
        assert all(a < b for a, b in pairwise(bounds))


def test_a_request_from_its_submission_to_its_last_event() -> None:
    clock = Clock()
    meter = Meter(clock, lambda: 5000.0)
    request = meter.request(7)
    for gap in (0.5, 0.125, 0.25):
        clock.now += gap
        request.token()
    assert meter.last_token == clock.now
    request.stop("stop")
    clock.now += 60  # a slow reader
    request.end("stop")
    request.end("length")  # only the first counts
    assert (meter.prompt_tokens, meter.generated_tokens) == (7, 3)
    assert (meter.first_token.total, meter.between_tokens.total) == (0.5, 0.375)
    assert (meter.between_tokens.count, meter.whole.total) == (2, 0.875)
    assert meter.finished == {"stop": 1}
    assert (meter.succeeded.count, meter.succeeded.seconds, meter.last_end) == (1, 0.875, 5000.0)


def test_how_long_a_router_has_a_sequence_is_learnt_from_those_that_were_completed() -> None:
    clock = Clock()
    meter = Meter(clock)
    for reason, seconds in (("error", 9.0), ("length", 1.0), ("aborted", 9.0), ("stop", 2.0)):
        request = meter.request(1)
        clock.now += 5.0  # in the line
        request.let_in()
        clock.now += seconds
        request.stop(reason)
        clock.now += 60.0  # a slow reader
        request.end(reason)
    learnt = meter.service_s
    assert learnt == 0.8 * 1.0 + 0.2 * 2.0
    never = meter.request(1)
    never.stop("stop")
    assert meter.service_s == learnt, "no router had it"


def test_failures_are_apart() -> None:
    clock = Clock()
    meter = Meter(clock)
    request = meter.request(1)
    clock.now += 2
    request.end(FAILED)
    assert (meter.failed.count, meter.failed.seconds, meter.succeeded.count) == (1, 2.0, 0)
    assert meter.last_end == 0.0
