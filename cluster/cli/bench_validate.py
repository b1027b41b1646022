"""The simulator's predictions against live clusters, for `moemesh bench balance`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from cluster.cli.report import Result, Target, result
from cluster.experiments.generators import Workload
from cluster.experiments.live.cluster import LiveNode, expert_model
from cluster.experiments.live.pin import cores
from cluster.experiments.live.validate import Case, validate, workload_for
from cluster.experiments.sim.model import Device, Model
from cluster.experiments.sim.profiles import profile
from cluster.library.bundled import open_model

MUST = Target(0.20, at_most=True, reference="measured median step")

ALL, TWO = (0, 1, 2), (0, 2)

UNPACED_STEPS, UNPACED_FITS = 6, 3
"""Steps and fits of nodes as they are for one of paced ones, which take more than ten times as long: whatever
else runs on the machine for a moment is then a small part of them, and a fit in a minute in which cores were
slow is one of several."""

FITTED_ON = Workload(tokens=16, zipf=0.6, burst_rate=0.05, burst_factor=4.0)
"""One skew; bursts make it have large steps too."""

CASES = {
    "tokens64": Case(replace(FITTED_ON, tokens=64, burst_rate=0.0), ALL),
    "nodes2": Case(replace(FITTED_ON, tokens=24, burst_rate=0.0), TWO),
    "zipf1": Case(replace(FITTED_ON, tokens=24, zipf=1.0, burst_rate=0.0), ALL),
}
"""Another batch size, another number of nodes, another skew."""


def validation_results(steps: int, seeds: int) -> Iterator[Result]:
    """Error of the predicted step time, on nodes paced as other devices, and on nodes as they are, which
    share this machine's cores with each other and the router. Nothing for no seeds."""
    if not seeds:
        return
    library = open_model()
    model = expert_model(library)
    for kind, nodes, more, fits in (
        ("paced", paced_nodes(model), 1, 1),
        ("unpaced", unpaced_nodes(), UNPACED_STEPS, UNPACED_FITS),
    ):
        sized = {
            name: Case(workload_for(library, replace(case.workload, steps=more * steps)), case.nodes)
            for name, case in CASES.items()
        }
        fitted_on = workload_for(library, replace(FITTED_ON, steps=2 * more * steps))
        start = profile("n100")
        runs = [validate(library, nodes, start, fitted_on, sized, seed) for seed in range(fits * seeds)]
        for name in CASES:
            found = [run[name] for run in runs]
            id = f"balance.simulator.error_{kind}.{name}"
            yield result(id, [each.error for each in found], "ratio", MUST)
            for what in ("measured", "predicted"):
                medians = [1e3 * float(np.median(getattr(each, what))) for each in found]
                yield result(f"{id}.{what}_ms", medians, "ms")


def unpaced_nodes() -> list[LiveNode]:
    """Three nodes over this machine's cores in turn, beginning with the second: the first has the router."""
    there = cores()
    return [LiveNode(core=there[number % len(there)]) for number in range(1, 4)]


def paced_nodes(model: Model) -> list[LiveNode]:
    """Three devices on which an expert takes at least 0.4 ms and a row 0.1 ms; the last at half speed."""
    device = Device(
        ops=model.ops_per_row / 1e-4,
        read=model.expert_bytes / 4e-4,
        memory=0,
        message_s=5e-4,
        latency_s=0.0,
        bandwidth=1e12,
        storage=1e12,
    )
    slow = replace(device, ops=device.ops / 2, read=device.read / 2, message_s=2 * device.message_s)
    return [LiveNode(device), LiveNode(device), LiveNode(slow)]
