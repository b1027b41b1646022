"""What to buy next: the same forecast with one thing better, so that what binds shows itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from cluster.experiments.capacity.forecast import Conditions, fits, forecast
from cluster.experiments.capacity.needs import Needs, Node
from cluster.experiments.sim.model import Device

WORTHWHILE = 1.02
"""Gains below it are not told from nothing."""

MOST_MACHINES = 64


@dataclass(frozen=True)
class Purchase:
    """resource: what it is more of. what: for people. gain: tokens per second, as a multiple of now's."""

    resource: str
    what: str
    gain: float


_BETTER: dict[str, tuple[str, Callable[[Device], Device]]] = {
    "memory": ("twice the memory for experts", lambda d: replace(d, memory=2 * d.memory)),
    "memory bandwidth": ("memory twice as fast", lambda d: replace(d, read=2 * d.read)),
    "compute": ("twice the arithmetic", lambda d: replace(d, ops=2 * d.ops)),
    "link": ("links twice as fast", lambda d: replace(d, bandwidth=2 * d.bandwidth)),
    "latency": ("half the latency of links", lambda d: replace(d, latency_s=d.latency_s / 2)),
    "message cost": ("half the cost of a message", lambda d: replace(d, message_s=d.message_s / 2)),
}
"""Of every node at once."""


def purchases(needs: Needs, nodes: Sequence[Node], under: Conditions) -> list[Purchase]:
    """Each changed alone, best first; those that gain nothing included. The experts fit as it is."""
    now = forecast(needs, nodes, under).tokens_per_s

    def gain(changed: Sequence[Node], conditions: Conditions) -> float:
        return forecast(needs, changed, conditions).tokens_per_s / now

    found = [
        Purchase(resource, what, gain([replace(node, device=better(node.device)) for node in nodes], under))
        for resource, (what, better) in _BETTER.items()
    ]
    router = under.router
    quick = replace(router, layer_s=router.layer_s / 2, row_s=router.row_s / 2, step_s=router.step_s / 2)
    found.append(Purchase("router", "a router twice as fast", gain(nodes, replace(under, router=quick))))
    more = _common(nodes)
    found.append(Purchase("machines", f"another {more.kind}", gain([*nodes, _again(more, 0)], under)))
    return sorted(found, key=lambda each: -each.gain)


def binding(found: Sequence[Purchase]) -> Purchase | None:
    """The single resource that holds the fleet up; a machine is several at once, so it does not count."""
    best = max((each for each in found if each.resource != "machines"), key=lambda each: each.gain)
    return best if best.gain >= WORTHWHILE else None


def machines_to_fit(needs: Needs, nodes: Sequence[Node]) -> tuple[Node, int] | None:
    """One of the fleet's most common machines, and how many more like it hold one copy of every expert; None
    if that is more than MOST_MACHINES."""
    like = _common(nodes)
    for count in range(MOST_MACHINES + 1):
        if fits(needs, [*nodes, *(_again(like, number) for number in range(count))]):
            return like, count
    return None


def _common(nodes: Sequence[Node]) -> Node:
    kind = Counter(node.kind for node in nodes).most_common(1)[0][0]
    return next(node for node in nodes if node.kind == kind)


def _again(node: Node, number: int) -> Node:
    """By a name that no host of a file can have."""
    return replace(node, name=f"{node.name}+{number}")
