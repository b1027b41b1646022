"""What a live run says of the machine it ran on, as the simulator wants it."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cluster.balance.baselines import round_robin
from cluster.balance.choice import flow
from cluster.balance.fleet import Floats
from cluster.controller.state import Role
from cluster.experiments.live.cluster import LiveCluster
from cluster.experiments.live.metered import CPU_S
from cluster.experiments.live.replay import ReplayRouter
from cluster.experiments.routing import Trace
from cluster.experiments.sim.control import Control
from cluster.experiments.sim.fit import Measurement, fit, fit_service, fit_sharing
from cluster.experiments.sim.inputs import Fleet, Host, Work
from cluster.experiments.sim.model import Device, Model, Router
from cluster.experiments.sim.run import simulate
from cluster.fleet.control import SYNC_PERIOD_S
from cluster.types import NodeId

AMPLE = 1 << 40
FRESH_S = 1.5 * SYNC_PERIOD_S
FREE = Router(0.0, 0.0, 0.0, float("inf"))


@dataclass(frozen=True)
class Calibration:
    """devices: of the nodes, in order. costs: of the router. cores: that nodes and router share in effect; 0
    where each has a machine to itself."""

    devices: tuple[Device, ...]
    costs: Router
    cores: float = 0.0

    def predict(self, trace: Trace, model: Model, nodes: Sequence[int]) -> Floats:
        """[steps] seconds that the simulator says if these nodes serve, experts dealt out in turn as in a new
        cluster's table."""
        slices = trace.step_slices()
        rows = np.stack([trace.counts(part) for part in slices])
        work = Work(rows, np.array([part.stop - part.start for part in slices]))
        hosts = (Host(self.cores, tuple(range(len(nodes))), routers=True),) if self.cores else ()
        devices = tuple(self.devices[node] for node in nodes)
        fleet = Fleet(devices, np.full(len(devices), AMPLE), router=self.costs, hosts=hosts)
        return simulate(work, model, fleet, round_robin, flow, Control(history=0)).step_s


def calibrate_apart(
    live: LiveCluster, router: ReplayRouter, trace: Trace, model: Model, start: Device
) -> Calibration:
    """Nodes that are paced, from one run of `trace`: whatever a dispatch takes beside its longest service is
    on the links."""
    measured = router.run(trace)
    devices = tuple(fit(each, model, start).device for each in measured.messages.values())
    return Calibration(devices, replace(FREE, layer_s=measured.layer_s))


def calibrate_shared(
    live: LiveCluster, router: ReplayRouter, trace: Trace, model: Model, start: Device
) -> Calibration:
    """Nodes that share this machine's cores with each other and the router, from one run of `trace`.

    What everybody's work costs is measured in core-seconds. How many cores they get in effect, and how long a
    message is on its way while nobody works for it, follow from how long steps took: the system keeps
    processes that wake each other on one core, even while another is idle.
    """
    before = spent(live)
    measured = router.run(trace)
    after = spent(live)
    devices = tuple(
        _device(messages, (after[node] - before[node]).tolist(), model, start)
        for node, messages in measured.messages.items()
    )
    costs = replace(FREE, layer_s=measured.layer_s, send_s=measured.send_s, take_s=measured.take_s)
    everybody = range(len(devices))

    def predicted(cores: float) -> Floats:
        return Calibration(devices, costs, cores).predict(trace, model, everybody)

    trips = 2 * len(trace.header.layers)
    found = fit_sharing(measured.step_s, os.cpu_count() or 1, predicted, trips)
    devices = tuple(replace(device, latency_s=found.latency_s) for device in devices)
    return Calibration(devices, costs, found.cores)


def spent(live: LiveCluster) -> dict[NodeId, Floats]:
    """(messages answered, core-seconds) of every node so far. Nodes tell it once a second: awaited here."""
    time.sleep(FRESH_S)
    members = live.controller.status()["members"]
    return {
        NodeId(member["id"]): np.array([member["stats"]["messages"], member["stats"][CPU_S]])
        for member in members
        if member["role"] == Role.NODE.value
    }


def _device(
    messages: Sequence[Measurement], spent: tuple[float, float], model: Model, start: Device
) -> Device:
    """Core-seconds of a node's messages: those that its experts took, and what its process spends besides on
    reading a message and answering it."""
    count, core_s = spent
    device = fit_service(messages, model, start)
    beside = max(core_s / count - float(np.mean([each.service_s for each in messages])), 0.0)
    return replace(device, message_s=device.message_s + beside, latency_s=0.0, bandwidth=float("inf"))
