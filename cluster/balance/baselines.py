"""Placements to compare with: round-robin, random, static frequency, and EPLB as its authors describe it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from cluster.balance.fleet import Floats, Integers
from cluster.balance.problem import Placement, Problem
from cluster.errors import ConfigError, OutOfMemoryBudget


def round_robin(problem: Problem) -> Placement:
    """One copy an expert, dealt to the devices in turn; a device without room is passed over."""
    dealt = 0

    def in_turn(at: tuple[int, int], room: Integers) -> int:
        nonlocal dealt
        fitting = _fitting(problem, at, room)
        turns = (fitting - dealt) % len(room)
        device = int(fitting[np.argmin(turns)])
        dealt = device + 1
        return device

    return _one_by_one(problem, _experts(problem), in_turn)


def random(problem: Problem, seed: int = 0) -> Placement:
    """One copy an expert, each on a random device that has room."""
    rng = np.random.default_rng(seed)
    return _one_by_one(
        problem, _experts(problem), lambda at, room: int(rng.choice(_fitting(problem, at, room)))
    )


def static_frequency(problem: Problem) -> Placement:
    """One copy an expert, the most loaded first, each to the device with the least load of its layer."""
    loads = np.zeros((len(problem.load), len(problem.devices)))

    def lightest(at: tuple[int, int], room: Integers) -> int:
        fitting = _fitting(problem, at, room)
        device = int(fitting[np.argmin(loads[at[0], fitting])])
        loads[at[0], device] += problem.load[at]
        return device

    experts = sorted(_experts(problem), key=lambda at: -problem.load[at])
    return _one_by_one(problem, experts, lightest)


def _experts(problem: Problem) -> list[tuple[int, int]]:
    return [(int(layer), e) for layer in np.flatnonzero(problem.sparse) for e in range(problem.load.shape[1])]


def _fitting(problem: Problem, at: tuple[int, int], room: Integers) -> Integers:
    size = int(problem.expert_bytes[at])
    fitting = np.flatnonzero(room >= size)
    if not fitting.size:
        raise OutOfMemoryBudget(
            f"expert {at[1]} of layer {at[0]} lacks {size - room.max()} bytes on the device with most room"
        )
    return fitting


def _one_by_one(
    problem: Problem, experts: list[tuple[int, int]], choose: Callable[[tuple[int, int], Integers], int]
) -> Placement:
    """choose(expert, [devices] bytes free) names a device with room."""
    room = problem.devices.memory.copy()
    hosts = np.zeros((*problem.load.shape, room.size), np.bool_)
    for at in experts:
        device = choose(at, room)
        hosts[at][device] = True
        room[device] -= problem.expert_bytes[at]
    return Placement(hosts)


def eplb(problem: Problem) -> Placement:
    """EPLB's global placement with the same number of slots a layer on every device, as it assumes.

    The slots are those of the smallest memory. Raises ConfigError where they cannot hold every expert.
    """
    layers, slots = np.flatnonzero(problem.sparse), _equal_slots(problem)
    hosts = np.zeros((*problem.load.shape, len(problem.devices)), np.bool_)
    hosts[layers] = eplb_global(problem.load[layers], slots * len(problem.devices), len(problem.devices)) > 0
    return Placement(hosts)


def _equal_slots(problem: Problem) -> int:
    largest = problem.expert_bytes.max(axis=1).sum()
    slots = int(problem.devices.memory.min() // largest)
    experts = problem.load.shape[1]
    if slots * len(problem.devices) < experts:
        raise ConfigError(
            f"EPLB needs equal slots: {slots} a layer on each of {len(problem.devices)} devices do not hold "
            f"{experts} experts; give the smallest device more memory or take another policy"
        )
    return slots


def eplb_global(load: Floats, copies: int, devices: int) -> Integers:
    """[layers, experts, devices] number of copies, of load [layers, experts].

    Per layer `copies` of equal shares of their expert's load (`replicate`), heaviest first, each to the
    lightest device with fewer than copies / devices of them. A device may get two copies of one expert.
    """
    if copies % devices:
        raise ConfigError(f"EPLB needs as many copies on every device; {copies} are not for {devices}")
    placed = np.zeros((*load.shape, devices), np.int64)
    replicas = replicate(load, copies)
    for layer, counts in enumerate(replicas):
        expert = np.repeat(np.arange(counts.size), counts)
        device = pack((load[layer] / counts)[expert], devices)
        np.add.at(placed[layer], (expert, device), 1)
    return placed


def eplb_hierarchical(load: Floats, copies: int, groups: int, nodes: int, devices: int) -> Integers:
    """The same for experts in `groups`, each of which stays on one node.

    Groups are packed onto nodes, replicas made within a node and packed onto its devices. Raises ConfigError
    where counts do not divide.
    """
    layers, experts = load.shape
    if experts % groups or groups % nodes or devices % nodes or copies % devices:
        raise ConfigError("EPLB's counts must divide: groups | experts, nodes | groups and devices | copies")
    width, per_node = experts // groups, devices // nodes
    placed = np.zeros((layers, experts, devices), np.int64)
    for layer in range(layers):
        node_of = pack(load[layer].reshape(groups, width).sum(axis=1), nodes)
        for node in range(nodes):
            mine = (np.flatnonzero(node_of == node)[:, None] * width + np.arange(width)).ravel()
            own = eplb_global(load[layer : layer + 1, mine], copies // nodes, per_node)[0]
            placed[layer, mine, node * per_node : (node + 1) * per_node] = own
    return placed


def replicate(load: Floats, copies: int) -> Integers:
    """[layers, experts] copies of each expert: one, and one more of the largest share until all are used."""
    counts = np.ones(load.shape, np.int64)
    layers = np.arange(len(load))
    for _ in range(copies - load.shape[1]):
        counts[layers, np.argmax(load / counts, axis=1)] += 1
    return counts


def pack(weight: Floats, bins: int) -> Integers:
    """[items] bin of each: heaviest first into the lightest bin with a free slot, all bins equally many.

    It looks at every bin for every item, in Python, as the published implementation does; with a heap of bins
    it would take a seventh of the time.
    """
    slots, weights = weight.size // bins, weight.tolist()
    filled, used, chosen = [0.0] * bins, [0] * bins, np.zeros(weight.size, np.int64)
    for item in np.argsort(-weight, kind="stable").tolist():
        lightest = min((b for b in range(bins) if used[b] < slots), key=filled.__getitem__)
        chosen[item] = lightest
        filled[lightest] += weights[item]
        used[lightest] += 1
    return chosen


def even_loads(load: Floats, placed: npt.NDArray[np.integer]) -> Floats:
    """[devices] load where copies share evenly; load: [experts], placed: [experts, devices] copies."""
    share: Floats = load / placed.sum(axis=1)
    return share @ placed


def balancedness(loads: Floats) -> float:
    """Mean over largest."""
    return float(loads.mean() / loads.max())
