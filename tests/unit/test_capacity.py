"""What `moemesh plan` says of fleets whose answers can be told by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cluster.cli import app
from cluster.errors import ConfigError, OutOfMemoryBudget
from cluster.experiments.capacity.forecast import Conditions, fits, forecast, missing_bytes, problem_of
from cluster.experiments.capacity.needs import Needs, Node, draw_work, nodes_of, router_link, rows_at_a_time
from cluster.experiments.capacity.purchases import binding, machines_to_fit, purchases
from cluster.experiments.sim.model import Device, Router
from cluster.experiments.sim.profiles import PROFILES
from cluster.fleet.file import DeviceClass, load

LAYERS, EXPERTS, TOP_K = 2, 8, 2
FREE = Router(layer_s=0.0, row_s=0.0, step_s=0.0, bandwidth=1e15)
FAST = Device(ops=1e18, read=1e15, memory=1 << 30, message_s=0.0, latency_s=0.0, bandwidth=1e15, storage=1e9)

FLEET = """\
name: ref
gateway: {insecure: true}
hosts:
  - {name: hub, address: 10.0.0.1, role: hub, memory_bytes: 16MiB, cores: 2}
  - name: pi-1
    address: 10.0.0.2
    role: edge
    memory_bytes: 16MiB
    cores: 4
    device: raspberry-pi-5
    link_bytes_per_s: 1MB
    labels: {site: attic}
"""


def needs(size: int = 1_000_000) -> Needs:
    sizes = np.full((LAYERS, EXPERTS), size, np.int64)
    sizes[0] = 0  # a dense layer
    return Needs("model", sizes, TOP_K, hidden=256, width=512, trunk_bytes=1)


def equal(count: int, **changes: float) -> list[Node]:
    return [Node(f"n{number}", replace(FAST, **changes)) for number in range(count)]


def under(streams: int = 4, **changes: object) -> Conditions:
    return replace(Conditions(streams, router=FREE), **changes)


def test_a_fleet_that_only_reads_memory_is_as_fast_as_it_reads() -> None:
    """One stream, every expert on its one node, one sparse layer: two experts a token are read."""
    found = forecast(needs(), equal(1, read=1e9), under(1))
    assert found.tokens_per_s == pytest.approx(1e9 / (TOP_K * 1_000_000), rel=1e-3)


def test_links_carry_rows_and_their_results() -> None:
    found = forecast(needs(), equal(2), under())
    assert found.back_bytes.sum() == pytest.approx(TOP_K * needs().model.reply_bytes)
    once = (1 - 0.5**TOP_K) * needs().model.request_bytes
    assert found.out_bytes == pytest.approx([once, once], rel=1e-2)


def test_a_forecast_holds_what_fits() -> None:
    found = forecast(needs(), equal(3, memory=4_000_000), under())
    held = found.placement.device_bytes(needs().expert_bytes)
    assert (held <= 4_000_000).all()
    assert found.placement.hosts[1].any(axis=1).all()
    assert not found.placement.hosts[0].any()


def test_every_expert_has_the_copies_that_it_shall() -> None:
    found = forecast(needs(), equal(3), under(min_replicas=3))
    assert (found.placement.hosts[1].sum(axis=1) == 3).all()


def test_the_same_fleet_has_the_same_forecast() -> None:
    one, two = (forecast(needs(), equal(3, read=1e9), under()) for _ in range(2))
    assert one.tokens_per_s == two.tokens_per_s


@pytest.mark.parametrize(
    ("resource", "changes"),
    [
        ("memory bandwidth", {"read": 1e9}),
        ("compute", {"ops": 1e9}),
        ("link", {"bandwidth": 1e5}),
        ("latency", {"latency_s": 0.1}),
        ("message cost", {"message_s": 0.1}),
    ],
)
def test_what_binds_is_found(resource: str, changes: dict[str, float]) -> None:
    found = purchases(needs(), equal(3, **changes), under())
    best = binding(found)
    assert best is not None
    assert best.resource == resource
    assert best.gain == pytest.approx(2, rel=0.05)


def test_a_slow_router_binds() -> None:
    best = binding(purchases(needs(), equal(2), under(router=replace(FREE, layer_s=1.0))))
    assert best is not None
    assert best.resource == "router"


def test_nothing_binds_where_nothing_helps() -> None:
    found = purchases(needs(), equal(2), under(router=replace(FREE, send_s=1.0)))
    assert binding(found) is None
    assert all(each.gain == pytest.approx(1, rel=0.02) for each in found if each.resource != "machines")


def test_memory_helps_where_replicas_are_wanted() -> None:
    """The slow node has the last room: with more, the fast one holds everything and does it all."""
    slow, fast = equal(1, read=1e8, memory=7_000_000)[0], equal(1, read=1e9, memory=1_000_000)[0]
    found = purchases(needs(), [slow, replace(fast, name="fast")], under())
    assert max(found, key=lambda each: each.gain).resource in ("memory", "memory bandwidth", "machines")
    assert next(each for each in found if each.resource == "memory").gain > 1.05


def test_what_does_not_fit_is_counted_in_machines() -> None:
    nodes = equal(2, memory=1_500_000)
    assert missing_bytes(needs(), nodes) == 8_000_000 - 3_000_000
    assert not fits(needs(), nodes)
    with pytest.raises(OutOfMemoryBudget, match="5000000 bytes more"):
        problem_of(needs(), nodes, 1)
    like, count = machines_to_fit(needs(), nodes) or (None, 0)
    assert like == nodes[0]
    assert count == 6  # one whole expert each
    assert machines_to_fit(needs(), equal(1, memory=1000)) is None


def test_drawn_work_has_every_streams_rows() -> None:
    work = draw_work(needs(), streams=5, steps=3)
    assert work.rows.shape == (3, LAYERS, EXPERTS)
    assert (work.rows[:, 1].sum(axis=1) == 5 * TOP_K).all()
    assert not work.rows[:, 0].any()
    assert work.rows.max() <= 5
    assert (draw_work(needs(), 5, 3).rows == work.rows).all()


def test_rows_at_a_time_grow_with_streams() -> None:
    assert rows_at_a_time(needs(), 1) == pytest.approx(1)
    assert rows_at_a_time(needs(), 1000) == pytest.approx(1000 * TOP_K / EXPERTS)


def fleet_file(folder: Path, text: str = FLEET) -> Path:
    path = folder / "fleet.yaml"
    path.write_text(text)
    return path


def test_nodes_are_the_files_hosts(tmp_path: Path) -> None:
    hub, edge = nodes_of(load(fleet_file(tmp_path)))
    assert (hub.kind, hub.device.memory) == ("n100", 16 << 20)
    assert (edge.kind, edge.device.bandwidth, edge.site) == ("raspberry-pi-5", 1e6, "attic")
    assert router_link(load(fleet_file(tmp_path))) == PROFILES["n100"].bandwidth
    wrong = fleet_file(tmp_path, FLEET.replace("raspberry-pi-5", "pi"))
    line = 1 + FLEET.splitlines().index("    device: raspberry-pi-5")
    with pytest.raises(
        ConfigError, match=f"line {line}: device of host pi-1 is 'pi'; it is one of raspberry-"
    ):
        load(wrong)


def test_every_device_of_a_fleet_file_has_a_profile() -> None:
    assert list(DeviceClass) == list(PROFILES)


def test_the_command_says_what_will_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = fleet_file(tmp_path)
    assert app.run(["plan", "", "--fleet", str(path), "--streams", "4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] is True
    assert found["assumed"] == ["hub"]
    assert list(found["tokens_per_s"]) == ["1", "4"]
    assert found["copies"]["least"] >= 1
    assert {node for layer in found["placement"] for expert in layer for node in expert} == {"hub", "pi-1"}
    assert sum(node["experts"] for node in found["nodes"]) == sum(
        len(expert) for layer in found["placement"] for expert in layer
    )
    assert app.run(["plan", "", "--fleet", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "what binds: " in shown
    assert "no device class given for hub: taken as n100" in shown


def test_the_command_fails_where_the_model_does_not_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = fleet_file(tmp_path, FLEET.replace("16MiB", "8MiB"))
    assert app.run(["plan", "", "--fleet", str(path)]) == 1
    assert "it does not fit" in capsys.readouterr().out
    assert app.run(["plan", "", "--fleet", str(path), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["machines"] == {"like": "hub", "count": 1}
    assert app.run(["plan", ""]) == 2
    assert app.run(["plan", str(tmp_path), "--fleet", str(path)]) == 1
