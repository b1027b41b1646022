"""What operators have asked of the cluster, which outlives a restart of the controller. Pure values."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from cluster.errors import ConfigError
from cluster.types import TIERS, NodeId


@dataclass(frozen=True)
class Orders:
    """drained: nodes that shall hold no experts. tiers: quality tiers that gateways offer."""

    drained: frozenset[NodeId] = frozenset()
    tiers: tuple[str, ...] = TIERS

    def offering(self, tiers: Sequence[str]) -> Orders:
        """With these tiers alone, in the order of TIERS. Raises ConfigError for none, or one that is not."""
        for tier in tiers:
            if tier not in TIERS:
                raise ConfigError(f"there is no tier {tier!r}; there is {', '.join(TIERS)}")
        if not tiers:
            raise ConfigError(f"no tier would be offered; name at least one of {', '.join(TIERS)}")
        return replace(self, tiers=tuple(tier for tier in TIERS if tier in tiers))

    def to_text(self) -> str:
        return json.dumps({"drained": sorted(self.drained), "tiers": list(self.tiers)})

    @staticmethod
    def from_text(text: str) -> Orders:
        """Inverse of `to_text`; tiers that are no more are left out. Raises ConfigError for anything else."""
        try:
            values = json.loads(text)
            drained = frozenset(NodeId(str(name)) for name in values["drained"])
            return Orders(drained, tuple(tier for tier in TIERS if tier in values["tiers"]) or TIERS)
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"the operators' orders cannot be read ({error!r}); delete the file") from error
