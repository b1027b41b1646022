"""The results that the simulator adds to the balance bench: their ids and what they are held against."""

from __future__ import annotations

import pytest

from cluster.cli import bench_laboratory
from cluster.experiments.drift import DriftTrial


@pytest.fixture
def small(monkeypatch):
    trial = DriftTrial(steps=40, moved=10, reference_moved=100, before=1.0, after=0.97, reference_after=0.8)
    monkeypatch.setattr(bench_laboratory, "drift_trial", lambda *arguments: trial)
    monkeypatch.setattr(bench_laboratory, "steps_per_second", lambda *arguments: 50.0)


def test_drift_is_held_against_the_issue(small):
    found = {result.id: result for result in bench_laboratory.drift_results(3, 400)}
    assert found["balance.drift.steps"].met
    assert found["balance.drift.steps"].runs == 3
    assert found["balance.drift.bytes_over_eplb"].value == pytest.approx(0.1)
    assert found["balance.drift.bytes_over_eplb"].met
    assert found["balance.drift.balancedness_after"].met is None


def test_the_simulator_s_speed_has_a_target_for_each_choice(small):
    loaded, flow = bench_laboratory.simulator_results(2)
    assert (loaded.id, loaded.met) == ("balance.simulator.least_loaded", False)
    assert (flow.id, flow.met) == ("balance.simulator.flow", True)
