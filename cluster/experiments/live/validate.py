"""The simulator held against live clusters: fitted on one workload, then it predicts others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from cluster.balance.fleet import Floats
from cluster.errors import ConfigError
from cluster.experiments.generators import Workload, whole
from cluster.experiments.live.calibrate import Calibration, calibrate_apart, calibrate_shared
from cluster.experiments.live.cluster import LiveCluster, LiveNode, expert_model, live_cluster
from cluster.experiments.live.pin import cores, pinned
from cluster.experiments.live.replay import ReplayRouter
from cluster.experiments.routing import Trace
from cluster.experiments.sim.model import Device, Model
from cluster.library.reader import Library

WARM_S = 0.5


@dataclass(frozen=True)
class Case:
    """What is run live and then predicted. nodes: which of the fitted ones serve it."""

    workload: Workload
    nodes: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Validated:
    """measured, predicted: [steps] seconds; fitted: what the prediction was made from."""

    measured: Floats
    predicted: Floats
    fitted: Calibration

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
    warm_s: float = WARM_S,
) -> dict[str, Validated]:
    """Fit each node on one run of `fitted_on`, then run every case live and in the simulator.

    start: a profile whose memory and storage the fitted devices keep. Nodes are paced, or each has a core;
    the router then runs on the first, every workload for `warm_s` before it is measured, and a fit is renewed
    after every case of all nodes: a shared machine may be half as fast a few seconds later. Cases of the
    same nodes share a cluster. Raises StartFailed, and ConfigError for workloads that do not fit the
    library, and for nodes of which some are neither.
    """
    paced = all(node.device is not None for node in nodes)
    seats = [node.core for node in nodes if node.core is not None]
    if not paced and len(seats) < len(nodes):
        raise ConfigError("nodes that are not paced share this machine's cores: say which one each has")
    home = None if paced else cores()[0]
    shared = () if home is None else (*seats, home)
    model = expert_model(library)
    found: dict[str, Validated] = {}
    everybody = tuple(range(len(nodes)))
    fitted: Calibration | None = None
    for group in dict.fromkeys([everybody, *(case.nodes for case in cases.values())]):
        with _replaying(library, [nodes[number] for number in group]) as (live, router), pinned(home):
            fit = partial(_fit, live, router, whole(fitted_on, seed), model, start, shared, warm_s)
            fitted = fitted or fit()
            for number, (name, case) in enumerate(cases.items(), 1):
                if case.nodes == group:
                    trace = whole(case.workload, seed + number)
                    if home is not None:
                        router.warm(trace, warm_s)
                    measured = router.run(trace).step_s
                    found[name] = Validated(measured, fitted.predict(trace, model, group), fitted)
                    if home is not None and group == everybody:
                        fitted = fit()
    return found


def _fit(
    live: LiveCluster,
    router: ReplayRouter,
    trace: Trace,
    model: Model,
    start: Device,
    shared: Sequence[int],
    warm_s: float,
) -> Calibration:
    """shared: as `seats` of Calibration; empty for paced nodes."""
    if not shared:
        return calibrate_apart(router, trace, model, start)
    router.warm(trace, warm_s)
    return calibrate_shared(live, router, trace, model, start, shared)


@contextmanager
def _replaying(library: Library, nodes: Sequence[LiveNode]) -> Iterator[tuple[LiveCluster, ReplayRouter]]:
    """A cluster of such nodes and a router over them that is connected."""
    with live_cluster(library, nodes) as live:
        router = ReplayRouter(live.place("router-0"))
        try:
            live.wait_ready(len(nodes) + 1)
            router.connect()
            yield live, router
        finally:
            router.shutdown()


def workload_for(library: Library, base: Workload) -> Workload:
    """`base` with the layers, experts and top-k of a library whose layers are all sparse."""
    spec = library.spec
    return replace(base, layers=len(spec.sparse_layers), experts=spec.experts, top_k=spec.top_k)
