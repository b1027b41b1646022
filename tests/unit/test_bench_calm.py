"""Samples beside which the machine was slow are told apart, repeated within bounds, and never hidden."""

from __future__ import annotations

import json
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.cli.kernelbench.calm import (
    BANDWIDTH_SHARE,
    RATE_SHARE,
    TRIES,
    Probe,
    Sample,
    best_of,
    calm_ones,
    enough,
    is_calm,
)
from cluster.cli.kernelbench.cases import RATE, ROOF, Case, rated_result
from cluster.cli.report import Report, Target

BEST = Probe(4e12, 16e9)
QUIET = Sample(1.0, BEST, BEST)
SLOW = Sample(9.0, Probe(1e12, 16e9), BEST)


def case(measure: str = RATE, target: Target = Target(must=0.5)) -> Case:  # noqa: B008 (frozen)
    return Case(
        "x", "s", "l", measure, lambda: None, bytes=1_000_000, operations=2_000_000_000_000, target=target
    )


@pytest.mark.parametrize(
    ("before", "after", "calm"),
    [
        (Probe(RATE_SHARE * 4e12), Probe(4e12), True),
        (Probe(0.99 * RATE_SHARE * 4e12), Probe(4e12), False),
        (Probe(4e12), Probe(0.99 * RATE_SHARE * 4e12), False),
        (Probe(4e12, BANDWIDTH_SHARE * 16e9), Probe(4e12, 16e9), True),
        (Probe(4e12, 16e9), Probe(4e12, 0.99 * BANDWIDTH_SHARE * 16e9), False),
    ],
)
def test_both_probes_must_come_near_the_best(before: Probe, after: Probe, calm: bool) -> None:
    assert is_calm(Sample(1.0, before, after), BEST) is calm


def test_the_best_of_the_run_is_of_each_limit_alone() -> None:
    assert best_of([Probe(1, 9), Probe(5, 2), Probe(3)]) == Probe(5, 9)
    assert best_of([Probe(1), Probe(2)]) == Probe(2, inf)


def test_a_fraction_is_against_its_own_probes() -> None:
    sample = Sample(2.0, Probe(1e12), Probe(3e12))
    assert sample.fraction(operations=2e12, bytes=1e9) == pytest.approx(0.5)
    memory = Sample(2.0, Probe(4e12, 1e9), Probe(4e12, 3e9))
    assert memory.fraction(operations=4e11, bytes=4e9) == pytest.approx(1.0)


def test_sampling_ends_with_enough_calm_ones_or_after_the_last_try() -> None:
    assert not enough([QUIET, SLOW], BEST, 2)
    assert enough([QUIET, SLOW, QUIET], BEST, 2)
    assert not enough([SLOW] * (2 * TRIES - 1), BEST, 2)
    assert enough([SLOW] * (2 * TRIES), BEST, 2)


@given(st.lists(st.floats(0.1, 1), min_size=1, max_size=30))
def test_no_sample_is_lost(shares: list[float]) -> None:
    samples = [Sample(1.0, Probe(share * 4e12), BEST) for share in shares]
    judged = rated_result(case(), samples, BEST)
    calm = calm_ones(samples, BEST)
    assert (judged.calm_runs, judged.disturbed_runs) == (len(calm), len(samples) - len(calm))
    assert judged.runs == len(calm or samples)


def test_only_calm_samples_count_where_there_are_any() -> None:
    judged = rated_result(case(), [SLOW, QUIET, SLOW], BEST)
    assert (judged.value, judged.runs, judged.disturbed, judged.met) == (0.5, 1, False, True)


def test_without_calm_samples_the_median_of_all_is_flagged(capsys: pytest.CaptureFixture[str]) -> None:
    judged = rated_result(case(ROOF), [SLOW, SLOW], BEST)
    assert (judged.runs, judged.disturbed, judged.met) == (2, True, False)
    report = Report("full", [judged, rated_result(case(), [SLOW, QUIET], BEST)])
    shown = json.loads(report.as_json())["results"]
    assert [r["disturbed"] for r in shown] == [True, False]
    assert [(r["calm_runs"], r["disturbed_runs"]) for r in shown] == [(0, 2), (1, 1)]
    report.show(as_json=False)
    assert "disturbed" in capsys.readouterr().out
