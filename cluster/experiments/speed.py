"""How fast the simulator is: steps a second of one core on a large fleet."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cluster.balance.choice import ChoicePolicy
from cluster.balance.problem import Placement, Problem
from cluster.experiments.generators import Workload, step_rows
from cluster.experiments.sim.control import Control
from cluster.experiments.sim.inputs import Fleet, Work
from cluster.experiments.sim.model import Model
from cluster.experiments.sim.profiles import profile
from cluster.experiments.sim.run import simulate

NODES, TOKENS, SPARE = 256, 256, 4
"""Every SPARE-th expert has a second copy."""

WORKLOAD = Workload(layers=60, experts=256, top_k=8, steps=1, tokens=TOKENS, zipf=0.6)


def steps_per_second(choice: ChoicePolicy, steps: int, clock: Callable[[], float], seed: int = 0) -> float:
    """Simulate 256 nodes × 60 layers × 256 experts for `steps` steps of 256 tokens.

    clock: seconds of this process's computing. Kernels are loaded before the clock is read; generating the
    load is not counted, placing and all of the event loop is.
    """
    one = Work(step_rows(WORKLOAD, seed), np.full(1, TOKENS))
    rows = np.repeat(one.rows, steps, axis=0)
    fleet = Fleet((profile("n100"),) * NODES, np.full(NODES, 1 << 40))
    model, control = Model(), Control(history=0)
    simulate(one, model, fleet, spread, choice, control)
    began = clock()
    simulate(Work(rows, np.full(steps, TOKENS)), model, fleet, spread, choice, control)
    return steps / (clock() - began)


def spread(problem: Problem) -> Placement:
    """Experts over devices in turn, every SPARE-th with a second copy half-way round: no time to speak of."""
    (layers, experts), devices = problem.load.shape, len(problem.devices)
    hosts = np.zeros((layers, experts, devices), np.bool_)
    layer, expert = np.indices((layers, experts))
    first = (layer * experts + expert) % devices
    hosts[layer, expert, first] = True
    spare = expert % SPARE == 0
    hosts[layer[spare], expert[spare], (first[spare] + devices // 2) % devices] = True
    return Placement(hosts)
