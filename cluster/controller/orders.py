"""What operators have asked of the cluster, which outlives a restart of the controller. Pure values."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from cluster.errors import ConfigError
from cluster.types import TIERS, NodeId


@dataclass(frozen=True)
class Orders:
    """drained: nodes that shall hold no experts. tiers: quality tiers that gateways offer. for_upgrade: those
    of drained that no operator has drained, but an upgrade, which lets them hold experts again."""

    drained: frozenset[NodeId] = frozenset()
    tiers: tuple[str, ...] = TIERS
    for_upgrade: frozenset[NodeId] = frozenset()

    def draining(self, node: NodeId, for_upgrade: bool = False) -> Orders:
        """With this node drained; what an operator has drained stays the operator's."""
        ours = for_upgrade and (node not in self.drained or node in self.for_upgrade)
        before = self.for_upgrade - {node}
        return replace(self, drained=self.drained | {node}, for_upgrade=before | {node} if ours else before)

    def undraining(self, node: NodeId) -> Orders:
        return replace(self, drained=self.drained - {node}, for_upgrade=self.for_upgrade - {node})

    @property
    def of_operators(self) -> Orders:
        """Without what an upgrade has drained."""
        return replace(self, drained=self.drained - self.for_upgrade, for_upgrade=frozenset())

    def following(self, before: Orders, since: Orders) -> Orders:
        """With what operators have changed from `before` to `since`."""
        old, new = before.of_operators.drained, since.of_operators.drained
        found = self
        for node in new - old:
            found = found.draining(node)
        for node in old - new:
            found = found.undraining(node)
        return found if since.tiers == before.tiers else replace(found, tiers=since.tiers)

    def offering(self, tiers: Sequence[str]) -> Orders:
        """With these tiers alone, in the order of TIERS. Raises ConfigError for none, or one that is not."""
        for tier in tiers:
            if tier not in TIERS:
                raise ConfigError(f"there is no tier {tier!r}; there is {', '.join(TIERS)}")
        if not tiers:
            raise ConfigError(f"no tier would be offered; name at least one of {', '.join(TIERS)}")
        return replace(self, tiers=tuple(tier for tier in TIERS if tier in tiers))

    def to_text(self) -> str:
        drained, for_upgrade = sorted(self.drained), sorted(self.for_upgrade)
        return json.dumps({"drained": drained, "tiers": list(self.tiers), "for_upgrade": for_upgrade})

    @staticmethod
    def from_text(text: str) -> Orders:
        """Inverse of `to_text`; tiers that are no more are left out. Raises ConfigError for anything else."""
        try:
            values = json.loads(text)
            tiers = tuple(tier for tier in TIERS if tier in values["tiers"]) or TIERS
            return Orders(_nodes(values["drained"]), tiers, _nodes(values.get("for_upgrade", ())))
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"the operators' orders cannot be read ({error!r}); delete the file") from error


def _nodes(names: Iterable[str]) -> frozenset[NodeId]:
    return frozenset(NodeId(str(name)) for name in names)
