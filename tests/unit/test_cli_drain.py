"""`moemesh drain` against a controller of the test's own."""

from __future__ import annotations

import json

import pytest

from cluster.cli import app
from cluster.errors import OutOfMemoryBudget
from support.scripted_controller import ScriptedController

STAGE = {"loads": [{"layer": 0, "expert": 1, "where": "node-0"}] * 3, "drops": [], "seconds": 0.1}
PLAN = {"node": "node-2", "drained": True, "started": True, "bytes": 3 << 20, "stages": [STAGE]}
MOVING = {"pending": 1, "settled": True, "active": 2, "held": 3}
PUBLISHED = MOVING | {"pending": 0, "settled": False}
SETTLED = PUBLISHED | {"settled": True}
EMPTY = SETTLED | {"held": 0}


@pytest.fixture
def controller(monkeypatch):
    fake = ScriptedController(PLAN, [MOVING, PUBLISHED, SETTLED, EMPTY], members)
    fake.install(monkeypatch, "cluster.cli.drain.POLL_S")
    return fake


def members(state):
    return [
        {"id": "node-1", "stats": {"held": 9}},
        {"id": "node-2", "stats": {"held": state["held"]}},
    ]


def test_it_waits_until_the_node_is_empty(controller, capsys):
    assert app.run(["drain", "node-2"]) == 0
    assert controller.asked == ["node-2"]
    assert not controller.left
    out = " ".join(capsys.readouterr().out.split())
    assert "node-2 is drained after" in out
    assert "3 experts (3.1 MB) were loaded elsewhere; placement table 1.2 is in use" in out
    assert "`moemesh drain node-2 --undo`" in out


def test_json_has_the_plan_and_the_table(controller, capsys):
    assert app.run(["drain", "node-2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["table"] == "1.2"
    assert found["took_s"] >= 0
    assert found["stages"] == [STAGE]


def test_a_node_that_held_nothing(controller, capsys):
    controller.plan = PLAN | {"stages": [], "bytes": 0, "started": False}
    controller.left = [EMPTY]
    assert app.run(["drain", "node-2"]) == 0
    assert "it held nothing" in capsys.readouterr().out


def test_undo(controller, capsys):
    assert app.run(["drain", "node-2", "--undo"]) == 0
    assert "`moemesh rebalance --force` gives it some" in capsys.readouterr().out
    assert not controller.asked


def test_what_cannot_be_is_one_line(controller, capsys):
    controller.plan = OutOfMemoryBudget("node-2 cannot be drained: the others lack 300 bytes")
    assert app.run(["drain", "node-2"]) == 1
    assert capsys.readouterr().err == "error: node-2 cannot be drained: the others lack 300 bytes\n"


def test_moves_that_do_not_end_are_reported(controller, capsys, monkeypatch):
    monkeypatch.setattr("cluster.cli.drain.MOVED_WITHIN_S", -1.0)
    assert app.run(["drain", "node-2"]) == 1
    assert "node-2 still holds 3 experts" in capsys.readouterr().err
