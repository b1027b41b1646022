"""What `moemesh top` draws: cells, copies, rates, and never wider than the screen."""

from __future__ import annotations

import numpy as np
import pytest
from rich.console import Console

from cluster.balance.load import LoadStats, NodeLoad
from cluster.balance.placement import PlacementTable
from cluster.cli.topview import LEVELS, Sample, Screen, levels, rates, view
from cluster.types import NodeId

NODES = (NodeId("node-0"), NodeId("node-1"))


def status(layers: int, experts: int, steps: int = 0, load: bool = True) -> dict:
    rows = np.ones((layers, experts))
    rows[:, 0] = 4 * experts
    stats = LoadStats(256.0, 1.0, 8.0, 8.0, rows, np.ones(layers), {NODES[0]: NodeLoad(1, 3, 1, 0.1)})
    replicas = tuple(
        tuple((0, 1) if e == 0 else (e % 2,) for e in range(experts)) if layer != 1 else ()
        for layer in range(layers)
    )
    common = {"health": "alive", "ready": True, "error": None, "experts": 4, "address": ""}
    node = {"role": "node", "share": 0.75, "stats": {"resident_bytes": 1 << 20, "waiting_rows": 3}}
    return {
        "epoch": 1,
        "version": 2,
        "active": 2,
        "pending": 1,
        "replicated": layers - 1,
        "rebalance": "auto",
        "decision": "first load: moving 400 bytes in 1 stage for 2.82 ms a step (25%), and so on",
        "members": [
            *(node | common | {"id": name} for name in NODES),
            {"role": "router", "id": "r", "stats": {"steps": steps, "rows": 8 * steps}} | common,
        ],
        "table": PlacementTable(1, 2, NODES, replicas).to_wire(),
        "load": stats.to_wire() if load else None,
    }


def drawn(values: dict, screen: Screen, before: dict | None = None) -> list[str]:
    console = Console(width=screen.width, height=screen.height, force_terminal=False, record=True)
    with console.capture() as capture:
        earlier = None if before is None else Sample(before, 1.0)
        console.print(view("reference", Sample(values, 3.0), earlier, screen))
    return capture.get().splitlines()


@pytest.mark.parametrize(("layers", "experts"), [(3, 8), (58, 256)])
def test_it_fits_a_screen_of_80_columns(layers: int, experts: int) -> None:
    lines = drawn(status(layers, experts), Screen(80, 24, layer=layers - 1))
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 24
    assert any(line.startswith(f"{layers - 1:>4} ") for line in lines)
    assert not any(line.startswith("   1 ") for line in lines)  # a dense layer has no experts
    assert f"layer {layers - 1}: 0 " in lines[-2]
    assert "on node-0+node-1" in lines[-2]
    assert "node-0  ███████████████·····  75%" in "\n".join(lines)


def test_rates_are_of_the_time_between_two_samples() -> None:
    assert rates(Sample(status(3, 8, 30), 3.0), Sample(status(3, 8, 10), 1.0)) == (10.0, 80.0)
    assert np.isnan(rates(Sample(status(3, 8), 3.0), None)).all()
    assert "10.0 steps/s  80 rows/s" in drawn(status(3, 8, 30), Screen(80, 24), status(3, 8, 10))[0]
    assert rates(Sample(status(3, 8, 0), 3.0), Sample(status(3, 8, 10), 1.0)) == (0.0, 0.0)  # restarted


def test_a_cell_shows_the_hottest_of_its_experts() -> None:
    load = np.array([[1.0, 1, 1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 0, 8], [0] * 8])
    full, one = len(LEVELS) - 1, -(-(len(LEVELS) - 1) // 4)
    assert levels(load, 80).tolist() == [[one] * 8, [0] * 7 + [full], [0] * 8]
    assert levels(load, 3).tolist() == [[one] * 3, [0, 0, full], [0] * 3]


def test_before_the_first_step_there_is_no_map() -> None:
    assert "no router has computed anything yet" in drawn(status(3, 8, load=False), Screen(80, 24))
