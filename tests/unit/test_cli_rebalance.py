"""`moemesh rebalance` against a controller of the test's own."""

from __future__ import annotations

import json

import pytest

from cluster.cli import app
from support.scripted_controller import ScriptedController

QUALITY = {"step_s": 2e-3, "bound_s": 1e-3, "balancedness": 0.5, "attainable": 0.9, "copies": 16.0}
STAGE = {
    "loads": [{"layer": 2, "expert": 7, "where": "node-1"}] * 30,
    "drops": [{"layer": 0, "expert": 3, "where": "node-0"}],
    "seconds": 1.5,
}
MOVES = {"stages": [STAGE], "refused": [{"layer": 1, "expert": 1, "where": "it is too large"}]}
COST = {"worth": True, "gain_s": 1e-3, "cost_s": 0.25, "bytes": 30 << 20, "seconds": 1.5}
PLAN = MOVES | COST | {"now": QUALITY, "then": QUALITY | {"step_s": 1e-3}, "started": False}
STATES = [{"pending": 1}, {"pending": 0, "settled": False}, {"pending": 0, "settled": True}]


@pytest.fixture
def controller(monkeypatch):
    fake = ScriptedController(PLAN, STATES)
    fake.install(monkeypatch, "cluster.cli.rebalance.POLL_S")
    return fake


def test_a_dry_run_prints_the_plan_and_what_it_gains(controller, capsys):
    assert app.run(["rebalance", "--dry-run"]) == 0
    assert controller.asked == [{"dry_run": True, "force": False}]
    out = " ".join(capsys.readouterr().out.split())
    for text in (
        "now: 2.000 ms of expert work a step, no placement below 1.000 ms;",
        "balancedness 0.500 of at most 0.900 with 16 copies",
        "gain 1.000 ms a step, cost 250.0 ms: 31.5 MB in 1 stages, 1.5 s",
        "load expert 7 of layer 2 on node-1",
        "… and 11 more; --json lists them",
        "stays: expert 1 of layer 1: it is too large",
        "it pays; without --dry-run it is done",
    ):
        assert text in out


def test_it_waits_until_the_table_is_in_use(controller, capsys):
    controller.plan = PLAN | {"started": True}
    assert app.run(["rebalance", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["table"] == "1.2"
    assert found["stages"] == [STAGE]
    assert not controller.left


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ({"stages": []}, "the experts are where they should be"),
        ({"worth": False}, "it does not pay, so nothing is moved; --force moves anyway"),
    ],
)
def test_what_is_not_moved_is_explained(controller, changes, verdict, capsys):
    controller.plan = PLAN | changes
    assert app.run(["rebalance"]) == 0
    assert verdict in " ".join(capsys.readouterr().out.split())
