"""A few faults on real processes, and a history of them without violations."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.cli.chaos_report import Outcome
from cluster.cli.chaos_run import carry_out
from cluster.experiments.chaos.history import History, from_lines
from cluster.experiments.chaos.run import Plan
from cluster.experiments.chaos.schedule import Shape

SEED, FAULTS = 16, 4
SHAPE = Shape(nodes=2, routers=1, gateways=1, nodes_away=1)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_few_faults_break_no_promise(tmp_path: Path) -> None:
    plan = Plan(seed=SEED, count=FAULTS, streams=4, shape=SHAPE)
    file = tmp_path / "history"
    with file.open("w") as writing:
        history = History(writing)
        answers, _ = carry_out(plan, history, tmp_path / "logs", lambda text: None)
    outcome = Outcome.of(plan, history.events, answers, ())
    assert outcome.violations == []
    assert sum(count for count, _ in outcome.faults.values()) == FAULTS
    assert "tamper-node" in outcome.faults
    assert any("has wrong bytes on disk" in log.read_text() for log in (tmp_path / "logs").glob("node-*.log"))
    assert outcome.requests["length"] >= 4
    assert from_lines(file.read_text().splitlines()) == history.events
