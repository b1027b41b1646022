"""The fast placement: used live, and the start of planning. Pure: the same problem and seed, the same answer.

Per layer, greedily (kernels.placement.fill_layer): copies of the largest shares, heaviest first, each to the
device that would be done first, avoiding devices that are linked already, so that the copies join all devices
into one net that rows can flow through. Then a search (improve_layer) that moves copies from what is tied to
the slowest device to what is not, led by exact dispatch flows and bounded by work, not by time.

Renaming: devices and experts are taken in an order of their values, so that a renamed problem gives the
renamed placement; those that no value tells apart may take each other's part.
"""

from __future__ import annotations

import numpy as np

from cluster.balance.bounds import replica_bound
from cluster.balance.objective import Objective, cost
from cluster.balance.ordered import Ordered, State, packed, trimmed
from cluster.balance.problem import Placement, Problem
from kernels.placement import fill_layer, improve_layer

ENOUGH = 1.005
"""A makespan so close to the least that any placement allows is not improved further."""

WORK = 400_000
"""Changes tried times copies, over all layers: what bounds the time where nothing is good enough sooner."""

MOST_TRIES = 6000
"""Changes tried in one layer."""

TRIES_A_START = 1000
"""A search that has not ended by then starts again from the greedy placement with other draws."""


def place(
    problem: Problem, objective: Objective | None = None, *, seed: int = 0, work: int = WORK
) -> Placement:
    """A placement that fits and gives every expert a copy. `seed`: of the search.

    With `problem.current` it is the better one of a placement from nothing and one that changes the current
    placement. Raises OutOfMemoryBudget, saying by how many bytes, where it finds no way to fit one copy of
    every expert.
    """
    goals = objective or Objective()
    ordered = Ordered.of(problem, goals)
    fresh = _solve(ordered, State.empty(ordered), seed, work)
    if fresh is None:
        fresh = _solve(ordered, packed(ordered), seed, work)
        assert fresh is not None, "what is packed has room"
    if problem.current is None:
        return fresh
    changed = _solve(ordered, trimmed(ordered), seed, work)
    if changed is None:
        return fresh
    return min((changed, fresh), key=lambda placement: cost(problem, placement, goals))


def _solve(ordered: Ordered, state: State, seed: int, work: int) -> Placement | None:
    """Complete `state` and improve it; None where an expert finds no room."""
    spare = not state.count.any()
    for layer in ordered.layers:
        if not _fill(ordered, state, layer, spare):
            return None
    copies = int(state.count.sum())
    tries = min(MOST_TRIES, work // max(copies, 1))
    for layer in ordered.layers:
        _improve(ordered, state, layer, seed, tries)
    return state.placement(ordered)


def _fill(ordered: Ordered, state: State, layer: int, spare: bool) -> bool:
    """False where an expert finds no room. spare: fill the layer's part of the memories with replicas."""
    quota = np.minimum(ordered.quota(layer, state.free), state.free) if spare else state.free
    homeless = fill_layer(
        *ordered.rule(layer),
        *ordered.nearness(layer, state, later=False),
        *ordered.staying(layer),
        quota,
        quota.sum() if spare else 0,
        state.where[layer],
        state.count[layer],
        state.free,
    )
    return not homeless


def _improve(ordered: Ordered, state: State, layer: int, seed: int, tries: int) -> None:
    """Search from the greedy start, again and again with other draws, and keep the best."""
    load, *_ = ordered.rule(layer)
    least = replica_bound(load, ordered.speed, int(state.count[layer].sum()))
    goal = ENOUGH * least * ordered.speed.sum() / max(load.sum(), _LEAST)
    rules = ordered.rule(layer), ordered.nearness(layer, state, later=True), ordered.staying(layer)
    arguments = [value for rule in rules for value in rule]
    begin, best = state.layer(layer), np.inf
    for start in range(max(1, tries // TRIES_A_START)):
        where, count, free = begin[0].copy(), begin[1].copy(), begin[2].copy()
        draws = np.uint64(((seed * _STARTS + start) * _LAYERS + layer) % 2**64)
        reached = improve_layer(*arguments, goal, min(tries, TRIES_A_START), draws, where, count, free)
        if reached < best:
            best = reached
            state.set_layer(layer, where, count, free)
        if best <= goal:
            return


_LEAST = 1e-300
_STARTS, _LAYERS = 1 << 16, 1 << 16
