"""A run of a specification on a real cluster of this machine instead of the simulator.

Nodes are paced as the fleet's devices with experts of the specification's model; rows go through the bundled
model's experts, whose layers, experts and top-k the trace must have. Links are this machine's own.
"""

from __future__ import annotations

import numpy as np

from cluster.balance.choice import ChoicePolicy
from cluster.balance.placement import PlacementTable
from cluster.balance.problem import Placement, PlacementPolicy, Problem
from cluster.config import ControllerConfig, Rebalance
from cluster.errors import ConfigError
from cluster.experiments.live.cluster import LiveNode, expert_page_bytes, live_cluster
from cluster.experiments.live.replay import ReplayRouter
from cluster.experiments.routing import Header, Trace
from cluster.experiments.sim.control import Control
from cluster.experiments.sim.inputs import Fleet, Work
from cluster.experiments.sim.model import Model
from cluster.experiments.sim.outcome import Outcome
from cluster.library.bundled import open_model
from cluster.library.reader import Library
from cluster.types import NodeId

COOL_DOWN_S = 2.0
"""Runs last seconds."""

FOREVER = 1e9
"""Steps, where moves need not pay."""


def run_live(
    trace: Trace,
    work: Work,
    model: Model,
    fleet: Fleet,
    placement: PlacementPolicy,
    choice: ChoicePolicy,
    control: Control,
) -> Outcome:
    """As `simulate`, on processes. Balancedness, moved bytes and hits are not told: NaN and 0.

    Raises ConfigError for what only the simulator has: faults, caches, several routers, placements at set
    times, traces of another shape than the bundled model's; and what the cluster raises.
    """
    _check(fleet, control)
    library = open_model()
    _check_shape(library, trace.header)
    devices = zip(fleet.devices, fleet.memory // model.expert_bytes, strict=True)
    size = expert_page_bytes(library)
    nodes = [LiveNode(device, int(slots) * size) for device, slots in devices]
    table = _table(library, _placed(work, model, fleet, placement, control), trace.header.layers)
    config = _config(control, float(work.tokens.mean()))
    with live_cluster(library, nodes, config=config, table=table, model=model) as live:
        router = ReplayRouter(live.place("router-0"), choice)
        try:
            live.wait_ready(len(nodes) + 1)
            step_s = router.run(trace).step_s
        finally:
            router.shutdown()
    steps, rows = len(step_s), int(work.rows.sum())
    nothing = np.zeros(steps, np.int64)
    return Outcome(step_s, np.full(steps, np.nan), nothing, float(step_s.sum()), rows, 0, 0, (), 0)


def _placed(
    work: Work, model: Model, fleet: Fleet, placement: PlacementPolicy, control: Control
) -> Placement:
    """The first placement, made from what the simulator's is made from."""
    shape = work.rows.shape[1:]
    first = work.rows[: control.history].mean(axis=0) if control.history else np.ones(shape)
    rows = float(work.rows[work.rows > 0].mean())
    problem = Problem(first, np.full(shape, model.expert_bytes), fleet.for_balance(model, rows))
    placed = placement(problem)
    problem.check(placed)
    return placed


def _table(library: Library, placed: Placement, layers: tuple[int, ...]) -> PlacementTable:
    """Over node-0, node-1 …, with the model's dense layers between."""
    spec, count = library.spec, placed.hosts.shape[2]
    hosts = np.zeros((spec.layers, spec.experts, count), np.bool_)
    hosts[list(layers)] = placed.hosts
    return Placement(hosts).to_table([NodeId(f"node-{number}") for number in range(count)], 0, 1)


def _config(control: Control, tokens: float) -> ControllerConfig:
    """tokens: of a mean step."""
    return ControllerConfig(
        Rebalance.auto if control.drift else Rebalance.manual,
        settle_tokens=int(control.settle * tokens),
        horizon=control.horizon or FOREVER,
        cool_down_s=COOL_DOWN_S,
        move_share=control.share,
    )


def _check_shape(library: Library, header: Header) -> None:
    spec = library.spec
    has, wanted = (
        f"layers {list(layers)}, {experts} experts, top_k {top_k}"
        for layers, experts, top_k in (
            (header.layers, header.experts, header.top_k),
            (spec.sparse_layers, spec.experts, spec.top_k),
        )
    )
    if has != wanted:
        raise ConfigError(f"a live run computes with {library.name}, {wanted}; the trace has {has}")


def _check(fleet: Fleet, control: Control) -> None:
    wrong = {
        "faults": bool(fleet.faults),
        "caches": fleet.resident is not None,
        "several routers": fleet.routers > 1,
        "hosts": bool(fleet.hosts),
        "placements every so many steps": control.every > 0,
    }
    for what, asked in wrong.items():
        if asked:
            raise ConfigError(f"{what} exist in the simulator alone; leave them out of a live run")
