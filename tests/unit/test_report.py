"""Figures are judged by their median, and the JSON object keeps its shape."""

from __future__ import annotations

import json

import pytest

from cluster.cli.report import Report, Target, percentile, result

KEYS = {"id", "value", "unit", "reference", "must", "aim", "met", "spread", "runs"}


@pytest.mark.parametrize(
    ("target", "met"),
    [
        (Target(), None),
        (Target(aim=1), None),
        (Target(must=20, at_most=True), True),
        (Target(must=19, at_most=True), False),
        (Target(must=20), True),
        (Target(must=21), False),
    ],
)
def test_the_median_is_held_against_the_target(target: Target, met: bool | None) -> None:
    judged = result("cluster.some.figure", [30, 10, 20], "ms", target)
    assert (judged.value, judged.spread, judged.runs, judged.met) == (20, (10, 30), 3, met)


@pytest.mark.parametrize(("percent", "expected"), [(50, 5), (90, 9), (99, 10), (100, 10), (1, 1)])
def test_percentiles_are_samples(percent: float, expected: float) -> None:
    assert percentile([7, 1, 2, 3, 4, 5, 6, 10, 8, 9], percent) == expected


def test_the_object_has_the_promised_keys() -> None:
    report = Report("minimal", [result("a.b", [1 / 3], "ratio", Target(must=0.3, reference="the law"))])
    made = json.loads(report.as_json())
    assert set(made) == {"machine", "git", "preset", "results"}
    assert set(made["machine"]) == {"cpu", "features", "cores", "autogroups", "versions"}
    assert set(made["results"][0]) == KEYS
    assert made["results"][0]["value"] == 0.3333


def test_nothing_but_the_object_goes_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    Report("minimal", [result("a.b", [1.0, 2.0], "ms")]).show(as_json=True)
    assert json.loads(capsys.readouterr().out)["results"][0]["spread"] == [1.0, 2.0]


def test_the_table_names_what_is_not_met(capsys: pytest.CaptureFixture[str]) -> None:
    Report("full", [result("a.b", [5.0], "ms", Target(must=1, at_most=True))]).show(as_json=False)
    assert "not met" in capsys.readouterr().out
