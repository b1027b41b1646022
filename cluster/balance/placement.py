"""The placement table: which expert nodes hold which experts. Pure values; everybody reads the same table.

Tables are ordered by (epoch, version): the epoch grows when a controller starts, the version with every
change it makes. A table is replaced only by a newer one, so that late messages cannot bring an old one back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.errors import ProtocolError
from cluster.types import ExpertId, NodeId


@dataclass(frozen=True, repr=False)
class PlacementTable:
    """Immutable and hashable.

    nodes: the node names; everything below refers to them by index.
    replicas: per layer, per expert, the indices of the nodes that hold it, the preferred one first.
        A dense layer has an empty tuple in place of its experts.

    Raises ValueError if an expert has no replica, names a node twice or names a node that is not there.
    """

    epoch: int
    version: int
    nodes: tuple[NodeId, ...]
    replicas: tuple[tuple[tuple[int, ...], ...], ...]

    def __post_init__(self) -> None:
        if self.epoch < 0 or self.version < 0:
            raise ValueError(f"a table's epoch and version count from 0, not {self.epoch}.{self.version}")
        if len(set(self.nodes)) != len(self.nodes):
            raise ValueError(f"a node appears twice in the table's nodes {list(self.nodes)}")
        for layer, experts in enumerate(self.replicas):
            for index, holders in enumerate(experts):
                self._check(ExpertId(layer, index), holders)

    def _check(self, expert: ExpertId, holders: tuple[int, ...]) -> None:
        if not holders:
            raise ValueError(f"expert {expert.index} of layer {expert.layer} has no replica")
        if len(set(holders)) != len(holders):
            raise ValueError(f"expert {expert.index} of layer {expert.layer} is on a node twice: {holders}")
        if min(holders) < 0 or max(holders) >= len(self.nodes):
            raise ValueError(
                f"expert {expert.index} of layer {expert.layer} is on an unknown node: {holders}"
            )

    def __repr__(self) -> str:
        experts = sum(map(len, self.replicas))
        return f"PlacementTable({self.epoch}.{self.version}, {len(self.nodes)} nodes, {experts} experts)"

    def owners(self, layer: int) -> npt.NDArray[np.int32]:
        """First replica of each expert of `layer`: [experts] int32 node indices, empty for a dense layer."""
        return np.array([holders[0] for holders in self.replicas[layer]], dtype=np.int32)

    def experts_of(self, node: NodeId) -> list[ExpertId]:
        """Experts that `node` must hold, by layer and index; empty for a node that is not in the table."""
        if node not in self.nodes:
            return []
        mine = self.nodes.index(node)
        return [
            ExpertId(layer, index)
            for layer, experts in enumerate(self.replicas)
            for index, holders in enumerate(experts)
            if mine in holders
        ]

    def to_wire(self) -> dict[str, Any]:
        """The table as msgpack-able values."""
        return {
            "epoch": self.epoch,
            "version": self.version,
            "nodes": list(self.nodes),
            "replicas": [[list(holders) for holders in experts] for experts in self.replicas],
        }

    @staticmethod
    def from_wire(values: Mapping[str, Any]) -> PlacementTable:
        """Inverse of `to_wire`. Raises ProtocolError on anything that is not a valid table."""
        try:
            return PlacementTable(
                epoch=int(values["epoch"]),
                version=int(values["version"]),
                nodes=tuple(NodeId(str(node)) for node in values["nodes"]),
                replicas=tuple(
                    tuple(tuple(int(holder) for holder in holders) for holders in experts)
                    for experts in values["replicas"]
                ),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ProtocolError(
                f"a peer sent a broken placement table ({error}); are all versions the same?"
            ) from error


def newer(a: PlacementTable, b: PlacementTable | None) -> bool:
    """Whether `a` replaces `b`: strictly higher (epoch, version), or there is no `b`."""
    return b is None or (a.epoch, a.version) > (b.epoch, b.version)


def round_robin(
    layers: int,
    experts: int,
    nodes: Sequence[NodeId],
    epoch: int = 1,
    version: int = 1,
    sparse: Sequence[int] | None = None,
) -> PlacementTable:
    """One replica an expert, dealt out over `nodes` in turn.

    sparse: the layers that have experts; None means all `layers` of them. A layer starts where the one before
    stopped, so that no two nodes differ by more than one expert in all. Raises ValueError without nodes.
    """
    if not nodes:
        raise ValueError("a placement needs at least one node")
    order = {layer: i for i, layer in enumerate(range(layers) if sparse is None else sorted(sparse))}
    return PlacementTable(
        epoch=epoch,
        version=version,
        nodes=tuple(nodes),
        replicas=tuple(
            tuple(
                (dealt % len(nodes),) for dealt in range(order[layer] * experts, (order[layer] + 1) * experts)
            )
            if layer in order
            else ()
            for layer in range(layers)
        ),
    )
