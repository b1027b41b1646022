"""The load of `moemesh bench gateway` is what it says, and its figures are what became of it."""

from __future__ import annotations

import asyncio
import math
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.cli.gatewaybench.arrivals import BURST, Arrival, Size, drawn, length, recorded
from cluster.cli.gatewaybench.client import offer
from cluster.cli.gatewaybench.figures import (
    DONE,
    LOST,
    REFUSED,
    Fate,
    Outcome,
    Slo,
    at_percentile,
    interval,
    refusal,
    results_of,
)
from cluster.cli.report import Target
from cluster.errors import ConfigError

SIZE = Size(prompt=16, new=4)


@pytest.mark.parametrize("pattern", ["poisson", "bursts"])
def test_a_load_is_a_function_of_its_seed_and_has_its_rate(pattern: str) -> None:
    load = drawn(pattern, 50.0, 100.0, SIZE, seed=3)
    assert load == drawn(pattern, 50.0, 100.0, SIZE, seed=3)
    assert load != drawn(pattern, 50.0, 100.0, SIZE, seed=4)
    assert abs(len(load) - 5000) < 4 * math.sqrt(5000 * BURST)
    times = [arrival.at for arrival in load]
    assert times == sorted(times)
    assert times[0] >= 0
    assert length(load) == times[-1] < 100.0


def test_bursts_come_together() -> None:
    times = [arrival.at for arrival in drawn("bursts", 80.0, 10.0, SIZE)]
    assert len(times) == BURST * len(set(times))


def test_poisson_gaps_vary_as_exponential_ones_do() -> None:
    times = [arrival.at for arrival in drawn("poisson", 100.0, 200.0, SIZE)]
    gaps = [b - a for a, b in pairwise(times)]
    mean = sum(gaps) / len(gaps)
    deviation = math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps))
    assert deviation == pytest.approx(mean, rel=0.05)


@pytest.mark.parametrize(
    ("pattern", "rate", "seconds"),
    [("waves", 1.0, 1.0), ("poisson", 0.0, 1.0), ("poisson", math.nan, 1.0), ("bursts", 1.0, -1.0)],
)
def test_a_load_that_makes_no_sense_is_refused(pattern: str, rate: float, seconds: float) -> None:
    with pytest.raises(ConfigError):
        drawn(pattern, rate, seconds, SIZE)


def test_a_trace_is_replayed_in_order_and_faster(tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    file.write_text(
        '{"at": 4, "prompt_tokens": 3, "new_tokens": 2}\n\n{"at": 1, "prompt_tokens": 5, "new_tokens": 7}\n'
    )
    assert recorded(file, speed=2.0) == [Arrival(0.5, Size(5, 7)), Arrival(2.0, Size(3, 2))]


@pytest.mark.parametrize("line", ["", "[]", '{"at": 1}', '{"at": -1, "prompt_tokens": 1, "new_tokens": 1}'])
def test_a_broken_trace_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "trace.jsonl"
    file.write_text(line)
    with pytest.raises(ConfigError, match=r"trace\.jsonl"):
        recorded(file)


def test_open_loop_waits_for_nobody_and_times_from_the_moment_meant() -> None:
    """Every request takes longer than all gaps together; still each is sent at its moment."""
    started: list[int] = []
    all_there = asyncio.Event()

    async def send(number: int, size: Size, moment: float) -> Fate:
        started.append(number)
        if len(started) == 20:
            all_there.set()
        await all_there.wait()
        return Fate(moment, DONE, 1.0)

    outcome = asyncio.run(offer(send, [Arrival(0.001 * i, SIZE) for i in range(20)]))
    assert started == list(range(20))
    moments = [one.at - outcome.fates[0].at for one in outcome.fates]
    assert moments == pytest.approx([0.001 * i for i in range(20)])


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=60), st.sampled_from((50, 90, 99)))
def test_an_interval_holds_its_percentile(samples: list[float], percent: float) -> None:
    low, high = interval(samples, percent)
    assert min(samples) <= low <= high <= max(samples)
    judged = at_percentile("x", samples, percent, "ms")
    assert judged.runs == len(samples)


def test_an_interval_narrows_with_more_samples() -> None:
    few, many = ([float(i % n) / n for i in range(n)] for n in (30, 3000))
    widths = [high - low for low, high in (interval(few, 50), interval(many, 50))]
    assert widths[1] < widths[0] / 4


def test_figures_count_what_became_of_requests() -> None:
    good = Fate(0.0, DONE, 0.4, (0.1, 0.2, 0.4))
    slow = Fate(0.0, DONE, 2.4, (2.1, 2.2, 2.4))
    outcome = Outcome(2.0, [good, slow, Fate(0.0, REFUSED, 0.01), Fate(0.0, LOST, 1.0)])
    found = {r.id: r for r in results_of("load", outcome, Slo.parse("ttft=500,itl=200"))}
    assert (found["load.sent"].value, found["load.refused"].value, found["load.lost"].value) == (4, 1, 1)
    assert found["load.throughput"].value == 1.0
    assert found["load.goodput"].value == 0.5
    assert found["load.ttft_p50"].value == 100.0
    assert found["load.e2e_p99"].value == 2400.0
    assert found["load.lost"].met is False
    times = {r.id: r for r in refusal("load", outcome, Target(20, at_most=True))}
    assert (times["load.refusal_p99"].value, times["load.refusal_p99"].met) == (10.0, True)


@pytest.mark.parametrize("text", ["ttft", "ttft=x", "speed=3", "itl=-1"])
def test_an_objective_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="objective"):
        Slo.parse(text)


def test_an_empty_objective_is_kept_by_all_that_end() -> None:
    assert Slo.parse("").kept_by(Fate(0.0, DONE, 9.0, (8.0, 9.0)))
    assert not Slo.parse("").kept_by(Fate(0.0, LOST, 9.0, (8.0, 9.0)))
