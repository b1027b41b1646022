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

from cluster.balance.bounds import fluid_bound, fluid_is_possible, replica_bound
from cluster.balance.fleet import Floats
from cluster.balance.objective import Objective, cost
from cluster.balance.ordered import Ordered, State, packed, trimmed
from cluster.balance.problem import Placement, Problem
from kernels.placement import fill_layer
from kernels.placement_search import improve_layer

ENOUGH = 1.01
"""A makespan so close to the least that any placement allows is not improved further."""

WORK = 100_000
"""Changes tried times copies, over all layers: what bounds the time where nothing is good enough sooner."""

CHANGE_WORK = 4
"""A search that begins with the current placement has nothing but its changes: it may do so much more."""

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
    changed = _solve(ordered, trimmed(ordered), seed, CHANGE_WORK * work)
    if changed is None:
        return fresh
    return min((changed, fresh), key=lambda placement: cost(problem, placement, goals))


def _solve(ordered: Ordered, state: State, seed: int, work: int) -> Placement | None:
    """Complete `state` and improve it; None where an expert finds no room."""
    spare = not state.count.any()
    for layer in ordered.layers:
        if not _fill(ordered, state, layer, spare):
            return None
    tries = min(MOST_TRIES, work // int(state.count.sum()))
    goals = _good_enough(ordered, state)
    for layer in ordered.layers:
        if tries < 2 * TRIES_A_START:
            _search(ordered, state, layer, goals[layer], tries, seed)
        else:
            _search_again(ordered, state, layer, goals[layer], tries // TRIES_A_START, seed)
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
        *state.layer(layer),
    )
    return not homeless


def _good_enough(ordered: Ordered, state: State) -> Floats:
    """[layers] makespans, as multiples of the ideal, at which a search of the layer may end."""
    load, speed, copies = ordered.load, ordered.speed, state.count.sum(axis=1)
    copies += state.free.sum() // np.maximum(ordered.size.min(axis=1), 1)
    goals = np.full(len(load), ENOUGH)
    scarce = ~fluid_is_possible(load, speed, copies) & (load.sum(axis=1) > 0)
    for layer in np.flatnonzero(scarce):
        ideal = fluid_bound(load[layer], speed)
        goals[layer] *= replica_bound(load[layer], speed, int(copies[layer])) / ideal
    return goals


def _search(ordered: Ordered, state: State, layer: int, goal: float, tries: int, seed: int) -> float:
    """Improve one layer of `state` and return its cost (improve_layer)."""
    return float(
        improve_layer(
            *ordered.rule(layer),
            *ordered.nearness(layer, state, later=True),
            *ordered.staying(layer),
            goal,
            tries,
            np.uint64((seed * _LAYERS + layer) % 2**64),
            *state.layer(layer),
        )
    )


def _search_again(ordered: Ordered, state: State, layer: int, goal: float, starts: int, seed: int) -> None:
    """Improve one layer from the same start with other draws until it is good enough; keep the best."""
    begin = state.copy_of(layer)
    found, best = begin, np.inf
    for start in range(starts):
        state.restore(layer, begin)
        reached = _search(ordered, state, layer, goal, TRIES_A_START, seed * starts + start)
        if reached < best:
            found, best = state.copy_of(layer), reached
        if best <= goal:
            break
    state.restore(layer, found)


_LAYERS = 1 << 16
"""More than any model has: draws of one layer are not those of another."""
