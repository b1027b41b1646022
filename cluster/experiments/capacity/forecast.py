"""Does a model fit a fleet, which experts go where, how fast will it be, and what each link carries.

Experts are placed by the policy that serves, for uniform load; tokens a second come from the simulator, on
the machines' classes. Routing that is not uniform is slower where replicas are few.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cluster.balance.bounds import layer_bounds
from cluster.balance.choice import Batch, flow
from cluster.balance.copies import complete
from cluster.balance.fleet import Devices, Floats, Integers
from cluster.balance.heuristic import place
from cluster.balance.problem import Placement, Problem
from cluster.errors import OutOfMemoryBudget
from cluster.experiments.capacity.needs import Needs, Node, devices_of, draw_work, rows_at_a_time
from cluster.experiments.sim.inputs import Fleet, Work
from cluster.experiments.sim.model import Router
from cluster.experiments.sim.run import simulate

STEPS = 8
"""Simulated a forecast: with uniform routing more of them move it by less than the classes are known to."""

RESOLUTION = 4096
"""Rows that a layer's mean load is cut into when they are dispatched for the links' shares."""

SCALE_BYTES = 4


@dataclass(frozen=True)
class Conditions:
    """streams: sequences that make a token a step. min_replicas: copies that every expert shall have."""

    streams: int
    routers: int = 1
    router: Router = Router()  # noqa: RUF009  frozen
    min_replicas: int = 1


@dataclass(frozen=True, eq=False)
class Forecast:
    """tokens_per_s: of all streams together. bound: tokens per second that experts and links alone would
    allow if rows were water and every node held every expert. out_bytes, back_bytes: [nodes] bytes of a token
    from the routers to the node and back."""

    placement: Placement
    devices: Devices
    tokens_per_s: float
    bound: float
    out_bytes: Floats
    back_bytes: Floats


def missing_bytes(needs: Needs, nodes: Sequence[Node]) -> int:
    """Bytes of memory that one copy of every expert lacks; 0 or less where there is room."""
    return int(needs.expert_bytes.sum()) - sum(node.device.memory for node in nodes)


def problem_of(needs: Needs, nodes: Sequence[Node], streams: int) -> Problem:
    """Uniform load. Raises OutOfMemoryBudget, saying by how many bytes, where the experts do not fit."""
    load = np.where(needs.expert_bytes > 0, streams * needs.top_k / needs.expert_bytes.shape[1], 0.0)
    devices = devices_of(needs, nodes, rows_at_a_time(needs, streams))
    return Problem(load, needs.expert_bytes, devices)


def place_experts(problem: Problem, min_replicas: int) -> Placement:
    """Raises OutOfMemoryBudget where no way is found to fit one copy of every expert."""
    devices = problem.devices
    found = place(problem)
    able = np.ones(len(devices), np.bool_)
    hosts = complete(found.hosts, problem.expert_bytes, devices.memory, able, min_replicas)
    return Placement(hosts)


def forecast(needs: Needs, nodes: Sequence[Node], under: Conditions) -> Forecast:
    """Raises OutOfMemoryBudget where the experts do not fit."""
    problem = problem_of(needs, nodes, under.streams)
    placement = place_experts(problem, under.min_replicas)
    passed = _simulated_s(needs, nodes, placement, under)
    seconds = sum(layer.fluid for layer in layer_bounds(problem, placement).values())
    out, back = traffic(needs, problem, placement)
    return Forecast(
        placement,
        problem.devices,
        STEPS * under.streams / passed,
        under.streams / seconds,
        out,
        back,
    )


def _simulated_s(needs: Needs, nodes: Sequence[Node], placement: Placement, under: Conditions) -> float:
    """Seconds of STEPS steps. The simulator has sparse layers only, and experts of one size: the router's
    part of dense layers goes to its step, and memories hold the placement in that size."""
    sparse = needs.expert_bytes.any(axis=1)
    held = Placement(placement.hosts[sparse])
    sizes = np.full(held.hosts.shape[:2], needs.model.expert_bytes)
    memory = np.array([node.device.memory for node in nodes], np.int64)
    router = under.router
    router = replace(router, step_s=router.step_s + router.layer_s * int((~sparse).sum()))
    work = draw_work(needs, under.streams, STEPS)
    fleet = Fleet(
        tuple(node.device for node in nodes),
        np.maximum(memory, held.device_bytes(sizes)),
        under.routers,
        router=router,
    )
    work = Work(work.rows[:, sparse], work.tokens)
    return simulate(work, needs.model, fleet, lambda _: held, flow).seconds


def traffic(needs: Needs, problem: Problem, placement: Placement) -> tuple[Floats, Floats]:
    """[nodes] bytes of one token on each node's link, there and back, over all layers.

    A token's row goes once to each node that has at least one of its experts (which are taken as drawn one
    by one), and comes back once for each expert.
    """
    out, back = np.zeros(len(problem.devices)), np.zeros(len(problem.devices))
    model = needs.model
    for layer in np.flatnonzero(problem.sparse).tolist():
        share = _shares(problem.load[layer], placement, layer, problem.devices)
        out += (1 - (1 - share) ** needs.top_k) * model.request_bytes
        back += share * needs.top_k * model.reply_bytes
    return out, back


def _shares(load: Floats, placement: Placement, layer: int, devices: Devices) -> Floats:
    """[devices] part of a layer's rows that each computes."""
    rows: Integers = np.rint(load * (RESOLUTION / load.sum())).astype(np.int64)
    batch = Batch(rows, placement.hosts[layer], devices.speed, np.zeros(len(devices)))
    done = flow(batch).sum(axis=0)
    return np.asarray(done / done.sum(), np.float64)


def fits(needs: Needs, nodes: Sequence[Node]) -> bool:
    """Whether one copy of every expert has room, whole experts on single nodes."""
    try:
        place_experts(problem_of(needs, nodes, 1), 1)
    except OutOfMemoryBudget:
        return False
    return True
