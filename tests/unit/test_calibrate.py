"""What a run says of its machine: a simulated machine whose costs are known is found again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cluster.experiments.generators import Workload, whole
from cluster.experiments.live import calibrate
from cluster.experiments.live.calibrate import FREE, Calibration, calibrate_apart, calibrate_shared
from cluster.experiments.live.metered import CPU_S
from cluster.experiments.live.replay import Replayed
from cluster.experiments.sim.fit import Measurement
from cluster.experiments.sim.model import Device, Model
from cluster.experiments.sim.profiles import profile
from cluster.types import NodeId

MODEL = Model(hidden=256, width=128, bits=8)
WORKLOAD = Workload(layers=3, experts=8, top_k=2, steps=40, tokens=8, zipf=0.6, burst_rate=0.1)
DEVICE = Device(
    ops=MODEL.ops_per_row / 4e-6,
    read=MODEL.expert_bytes / 2e-5,
    memory=0,
    message_s=1e-4,
    latency_s=0.0,
    bandwidth=float("inf"),
    storage=1.0,
)
BESIDE_S = 1.2e-4
"""Core-seconds of a message that are not told as its service."""


class Machine:
    """In place of a live cluster and its router: steps take what the simulator says of `truth`."""

    def __init__(self, truth: Calibration) -> None:
        self.truth, self.controller = truth, self
        self.spent = np.zeros((len(truth.devices), 2))

    def status(self):
        nodes = [
            {"role": "node", "id": f"node-{number}", "stats": {"messages": int(count), CPU_S: core_s}}
            for number, (count, core_s) in enumerate(self.spent.tolist())
        ]
        return {"members": [*nodes, {"role": "router", "id": "router-0", "stats": {}}]}

    def run(self, trace):
        nodes = range(len(self.truth.devices))
        messages = {NodeId(f"node-{number}"): [] for number in nodes}
        for part in trace.step_slices():
            for layer in trace.counts(part):
                for number, device in enumerate(self.truth.devices):
                    rows = tuple(int(n) for n in layer[number :: len(nodes)] if n)
                    service_s = device.service_s(list(rows), MODEL) - BESIDE_S
                    link_s = 2 * device.latency_s + 1e-9
                    messages[NodeId(f"node-{number}")].append(
                        Measurement(rows, service_s, 1000 * sum(rows), link_s)
                    )
                    self.spent[number] += 1, service_s + BESIDE_S
        costs = self.truth.costs
        step_s = self.truth.predict(trace, MODEL, nodes)
        return Replayed(step_s, costs.layer_s, costs.send_s, costs.take_s, messages)


@pytest.mark.parametrize("seats", [(1, 0, 1, 0), (0, 0, 0, 0), (1, 2, 3, 0)])
def test_every_cost_of_processes_that_share_cores_is_found_again(monkeypatch, seats):
    """seats: the core of each node, and of the router."""
    monkeypatch.setattr(calibrate, "FRESH_S", 0.0)
    device = replace(DEVICE, message_s=DEVICE.message_s + BESIDE_S, latency_s=3e-5)
    costs = replace(FREE, layer_s=3e-5, send_s=4e-5, take_s=3e-5)
    machine = Machine(Calibration((device,) * 3, costs, seats))
    found = calibrate_shared(machine, machine, whole(WORKLOAD, 0), MODEL, profile("n100"), seats)
    assert found.costs == costs
    for each in found.devices:
        assert each.message_s == pytest.approx(device.message_s, rel=0.05)
        assert each.service_s([3, 30], MODEL) == pytest.approx(device.service_s([3, 30], MODEL), rel=0.05)
    other = whole(replace(WORKLOAD, tokens=24, steps=5), 1)
    for nodes in ((0, 1, 2), (0, 2)):
        expected = machine.truth.predict(other, MODEL, nodes)
        np.testing.assert_allclose(found.predict(other, MODEL, nodes), expected, rtol=0.05)


def test_nodes_with_machines_of_their_own_share_no_core():
    device = replace(DEVICE, message_s=5e-4 + BESIDE_S, latency_s=1e-4)
    machine = Machine(Calibration((device,) * 2, replace(FREE, layer_s=5e-5)))
    found = calibrate_apart(machine, whole(WORKLOAD, 0), MODEL, profile("n100"))
    assert not found.seats
    assert found.costs == replace(FREE, layer_s=5e-5)
    for each in found.devices:
        assert each.latency_s == pytest.approx(1e-4, rel=0.01)
        assert each.message_s == pytest.approx(5e-4, rel=0.05)
