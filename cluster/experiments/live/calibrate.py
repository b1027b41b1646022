"""What a live run says of the machine it ran on, as the simulator wants it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cluster.balance.baselines import round_robin
from cluster.balance.choice import flow
from cluster.balance.fleet import Floats
from cluster.controller.members import Role
from cluster.experiments.live.cluster import LiveCluster
from cluster.experiments.live.metered import CPU_S
from cluster.experiments.live.replay import ReplayRouter
from cluster.experiments.routing import Trace
from cluster.experiments.sim.control import Control
from cluster.experiments.sim.fit import Measurement, fit, fit_service
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
    """devices: of the nodes, in order. costs: of the router. seats: the core that each node runs on, and last
    the router; empty where each has a machine to itself."""

    devices: tuple[Device, ...]
    costs: Router
    seats: tuple[int, ...] = ()

    def predict(self, trace: Trace, model: Model, nodes: Sequence[int]) -> Floats:
        """[steps] seconds that the simulator says if these nodes serve, experts dealt out in turn as in a new
        cluster's table."""
        slices = trace.step_slices()
        rows = np.stack([trace.counts(part) for part in slices])
        work = Work(rows, np.array([part.stop - part.start for part in slices]))
        devices = tuple(self.devices[node] for node in nodes)
        memory = np.full(len(devices), AMPLE)
        fleet = Fleet(devices, memory, router=self.costs, hosts=self._hosts(nodes))
        return simulate(work, model, fleet, round_robin, flow, Control(history=0)).step_s

    def _hosts(self, nodes: Sequence[int]) -> tuple[Host, ...]:
        """A core is a host: nobody leaves it."""
        return tuple(
            Host(
                1,
                tuple(i for i, node in enumerate(nodes) if self.seats[node] == core),
                core == self.seats[-1],
            )
            for core in sorted(set(self.seats))
        )


def calibrate_apart(router: ReplayRouter, trace: Trace, model: Model, start: Device) -> Calibration:
    """Nodes that are paced, from one run of `trace`: whatever a dispatch takes beside its longest service is
    on the links."""
    measured = router.run(trace)
    devices = tuple(fit(each, model, start).device for each in measured.messages.values())
    return Calibration(devices, replace(FREE, layer_s=measured.layer_s))


def calibrate_shared(
    live: LiveCluster,
    router: ReplayRouter,
    trace: Trace,
    model: Model,
    start: Device,
    seats: Sequence[int],
) -> Calibration:
    """Nodes that share cores with each other and the router, from one run of `trace`.

    seats: as in Calibration. What everybody's work costs is measured in core-seconds. How long a message is
    on its way while nobody works for it follows from how long steps took.
    """
    before = spent(live)
    measured = router.run(trace)
    after = spent(live)
    devices = tuple(
        _device(messages, (after[node] - before[node]).tolist(), model, start)
        for node, messages in measured.messages.items()
    )
    costs = replace(FREE, layer_s=measured.layer_s, send_s=measured.send_s, take_s=measured.take_s)
    found = Calibration(devices, costs, tuple(seats))
    over = measured.step_s - found.predict(trace, model, range(len(devices)))
    trips = 2 * len(trace.header.layers)
    latency_s = max(0.0, float(np.median(over))) / trips
    return replace(found, devices=tuple(replace(device, latency_s=latency_s) for device in devices))


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
