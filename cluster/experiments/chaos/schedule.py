"""Which faults happen when: drawn from a seed, within rules that keep what is promised possible. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice, takewhile

import numpy as np

from cluster.controller.members import Role


class Kind(StrEnum):
    """kill: SIGKILL, and after a while a new process of the same name, as a supervisor starts it. freeze:
    SIGSTOP, later SIGCONT. cut: nothing passes between routers and the node, while the controller hears of
    it. slow: a tenth of its speed. flap: frozen for moments, again and again. kill_nodes: two at once.
    tamper: a kill, and bits are flipped in its files before the new process reads them.
    """

    kill_node = "kill-node"
    freeze_node = "freeze-node"
    cut_node = "cut-node"
    slow_node = "slow-node"
    flap_node = "flap-node"
    kill_router = "kill-router"
    freeze_router = "freeze-router"
    kill_gateway = "kill-gateway"
    kill_controller = "kill-controller"
    freeze_gateway = "freeze-gateway"
    kill_nodes = "kill-nodes"
    tamper_node = "tamper-node"

    @property
    def role(self) -> str:
        """Of its victims."""
        return self.value.partition("-")[2].removesuffix("s")

    @property
    def kills(self) -> bool:
        return self.value.startswith(("kill", "tamper"))

    @property
    def at_once(self) -> int:
        """How many victims it has."""
        return 2 if self is Kind.kill_nodes else 1


VERSION = 2
"""Of what is drawn from a seed. A seed gives the same faults and requests as long as this is the same."""

CONTROLLER = "controller"

WEIGHTS = {
    Kind.kill_node: 3,
    Kind.freeze_node: 3,
    Kind.cut_node: 3,
    Kind.slow_node: 2,
    Kind.flap_node: 2,
    Kind.kill_router: 2,
    Kind.freeze_router: 2,
    Kind.kill_gateway: 2,
    Kind.kill_controller: 1,
    Kind.freeze_gateway: 2,
    Kind.kill_nodes: 6,
    Kind.tamper_node: 4,
}
"""How often each is tried, relative to the others."""

PAUSE_S = (0.1, 2.0)
"""Between the beginnings of two faults."""

LASTS_S = {True: (0.2, 2.0), False: (0.2, 6.0)}
"""By whether it kills: until a new process is started, or until the fault is over. A frozen or cut node is
declared lost after 10 s of silence; what follows from that is a kill's to try."""

BACK_S = {True: 5.0, False: 1.0}
"""By whether it kills: after its end, until the victim can be counted on again."""

RETRY_S = 0.25
"""A fault that the rules do not allow now is drawn again so much later."""


@dataclass(frozen=True)
class Shape:
    """How many there are of each role, node-0, node-1 …, and how many nodes may be away at once; every expert
    has one copy more. All but one router, and all but one gateway, may be. spared: whether the first of each
    role is never killed, so that it grows old."""

    nodes: int = 4
    routers: int = 2
    gateways: int = 2
    nodes_away: int = 2
    spared: bool = False

    @property
    def copies(self) -> int:
        """Of every expert."""
        return self.nodes_away + 1

    def names(self, role: str) -> list[str]:
        if role == CONTROLLER:
            return [CONTROLLER]
        counts = {Role.NODE: self.nodes, Role.ROUTER: self.routers, Role.GATEWAY: self.gateways}
        return [f"{role}-{number}" for number in range(counts[Role(role)])]

    def victims(self, kind: Kind) -> list[str]:
        """Those that it may have; none where it needs more."""
        found = self.names(kind.role)[1 if self.spared and kind.kills else 0 :]
        return found if kind.at_once <= min(self.may_be_away(kind.role), len(found)) else []

    def may_be_away(self, role: str) -> int:
        if role == Role.NODE.value:
            return self.nodes_away
        return 1 if role == CONTROLLER else len(self.names(role)) - 1


@dataclass(frozen=True)
class Fault:
    """at_s: seconds after the start of the run; for_s: how long it lasts."""

    number: int
    kind: Kind
    victims: tuple[str, ...]
    at_s: float
    for_s: float

    @property
    def over_s(self) -> float:
        return self.at_s + self.for_s

    @property
    def back_s(self) -> float:
        """From when on the victims count as there."""
        return self.over_s + BACK_S[self.kind.kills]

    @property
    def takes_away(self) -> bool:
        """Whether the victims do nothing meanwhile."""
        return self.kind is not Kind.slow_node


def faults(seed: np.random.SeedSequence, shape: Shape) -> Iterator[Fault]:
    """Without end, in the order of their times: of a longer run, a shorter one has the beginning."""
    rng = np.random.default_rng(seed)
    kinds = [kind for kind in WEIGHTS if shape.victims(kind)]
    weights = np.array([WEIGHTS[kind] for kind in kinds], dtype=np.float64)
    before: list[Fault] = []
    now = 0.0
    while True:
        now += rng.uniform(*PAUSE_S)
        while not allowed(before, fault := _draw(rng, kinds, weights, shape, len(before), now), shape):
            now += RETRY_S
        before.append(fault)
        yield fault


def first(seed: np.random.SeedSequence, shape: Shape, count: int) -> list[Fault]:
    return list(islice(faults(seed, shape), count))


def within(seed: np.random.SeedSequence, shape: Shape, seconds: float) -> list[Fault]:
    """Those that are over after so many seconds."""
    return [
        each
        for each in takewhile(lambda one: one.at_s < seconds, faults(seed, shape))
        if each.over_s < seconds
    ]


def _draw(
    rng: np.random.Generator,
    kinds: Sequence[Kind],
    weights: np.ndarray,
    shape: Shape,
    number: int,
    now: float,
) -> Fault:
    kind = kinds[rng.choice(len(kinds), p=weights / weights.sum())]
    names = shape.victims(kind)
    victims = tuple(names[place] for place in rng.choice(len(names), kind.at_once, replace=False))
    return Fault(number, kind, victims, round(now, 3), round(rng.uniform(*LASTS_S[kind.kills]), 3))


def allowed(before: Sequence[Fault], fault: Fault, shape: Shape) -> bool:
    """Whether enough are left to keep every promise. before: faults that begin no later, all allowed.

    One at a time has the same victim. Of nodes that do nothing there are at most `nodes_away`: with so many
    copies and one more, some node in reach has every expert, or can load it; of routers and gateways one is
    left.
    """
    still = [other for other in before if fault.at_s < other.back_s]
    if any(not set(other.victims).isdisjoint(fault.victims) for other in still):
        return False
    role = fault.kind.role
    away = sum(len(other.victims) for other in still if other.takes_away and other.kind.role == role)
    return not fault.takes_away or away + len(fault.victims) <= shape.may_be_away(role)
