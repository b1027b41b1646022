"""The simulator held against live clusters: fitted on one workload, then it predicts others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np

from cluster.balance.baselines import round_robin
from cluster.balance.choice import flow
from cluster.balance.fleet import Floats
from cluster.experiments.generators import Workload, whole
from cluster.experiments.live.cluster import LiveNode, expert_model, live_cluster
from cluster.experiments.live.replay import ReplayRouter
from cluster.experiments.routing import Trace
from cluster.experiments.sim.control import Control
from cluster.experiments.sim.fit import fit
from cluster.experiments.sim.inputs import Fleet, Work
from cluster.experiments.sim.model import Device, Model, Router
from cluster.experiments.sim.run import simulate
from cluster.library.reader import Library

AMPLE = 1 << 40


@dataclass(frozen=True)
class Case:
    """What is run live and then predicted. nodes: which of the fitted ones serve it."""

    workload: Workload
    nodes: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Validated:
    """measured, predicted: [steps] seconds."""

    measured: Floats
    predicted: Floats

    @property
    def error(self) -> float:
        """|predicted − measured| / measured of the median step."""
        measured, predicted = float(np.median(self.measured)), float(np.median(self.predicted))
        return abs(predicted - measured) / measured


def validate(
    library: Library,
    nodes: Sequence[LiveNode],
    start: Device,
    fitted_on: Workload,
    cases: Mapping[str, Case],
    seed: int = 0,
) -> dict[str, Validated]:
    """Fit each node on one run of `fitted_on`, then run every case live and in the simulator.

    start: a profile whose memory and storage the fitted devices keep. Cases of the same nodes share a
    cluster. Raises StartFailed, and ConfigError for workloads that do not fit the library.
    """
    model = expert_model(library)
    found: dict[str, Validated] = {}
    everybody = tuple(range(len(nodes)))
    devices: list[Device] = []
    costs = Router()
    for group in dict.fromkeys([everybody, *(case.nodes for case in cases.values())]):
        with _replaying(library, [nodes[number] for number in group]) as router:
            if group == everybody:
                measured = router.run(whole(fitted_on, seed))
                devices = [fit(each, model, start).device for each in measured.messages.values()]
                costs = Router(measured.layer_s, 0.0, 0.0, float("inf"))
            for number, (name, case) in enumerate(cases.items(), 1):
                if case.nodes == group:
                    trace = whole(case.workload, seed + number)
                    there = tuple(devices[each] for each in group)
                    found[name] = Validated(router.run(trace).step_s, predict(trace, model, there, costs))
    return found


def predict(trace: Trace, model: Model, devices: tuple[Device, ...], costs: Router) -> Floats:
    """[steps] seconds that the simulator says, experts dealt out in turn as in a new cluster's table."""
    slices = trace.step_slices()
    rows = np.stack([trace.counts(part) for part in slices])
    work = Work(rows, np.array([part.stop - part.start for part in slices]))
    fleet = Fleet(devices, np.full(len(devices), AMPLE), router=costs)
    return simulate(work, model, fleet, round_robin, flow, Control(history=0)).step_s


@contextmanager
def _replaying(library: Library, nodes: Sequence[LiveNode]) -> Iterator[ReplayRouter]:
    """A router over such nodes that has run a few steps."""
    with live_cluster(library, nodes) as live:
        router = ReplayRouter(live.place("router-0"))
        try:
            live.wait_ready(len(nodes) + 1)
            router.connect()
            yield router
        finally:
            router.shutdown()


def workload_for(library: Library, base: Workload) -> Workload:
    """`base` with the layers, experts and top-k of a library whose layers are all sparse."""
    spec = library.spec
    return replace(base, layers=len(spec.sparse_layers), experts=spec.experts, top_k=spec.top_k)
