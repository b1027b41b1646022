"""What clients may see of each fault, and how long a stream may pause. docs/chaos.md has the same table."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.experiments.chaos.schedule import Kind

UNAVAILABLE = "UNAVAILABLE"
BACKPRESSURE = "RESOURCE_EXHAUSTED"
"""A call that was refused before its first token; with or without a fault."""

EFFECT_S = 5.0
"""A fault counts as the cause of an error for so long after its end."""


@dataclass(frozen=True)
class Promise:
    """errors: codes with which calls under way, or made meanwhile, may end. told: whether the error says how
    many tokens were sent: it does where the gateway is alive. gap_s: the longest pause of any stream, also on
    a machine whose cores do other work."""

    errors: frozenset[str] = frozenset()
    told: bool = True
    gap_s: float = 15.0


UNBROKEN = Promise()
PROMISES = {
    Kind.kill_node: UNBROKEN,
    Kind.freeze_node: UNBROKEN,
    Kind.cut_node: UNBROKEN,
    Kind.slow_node: UNBROKEN,
    Kind.flap_node: UNBROKEN,
    Kind.kill_controller: UNBROKEN,
    Kind.kill_router: UNBROKEN,
    Kind.freeze_router: UNBROKEN,
    Kind.kill_gateway: Promise(frozenset({UNAVAILABLE}), told=False),
    Kind.freeze_gateway: UNBROKEN,
    Kind.kill_nodes: UNBROKEN,
    Kind.tamper_node: UNBROKEN,
}
