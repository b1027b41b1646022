"""Members of a cluster that hold nothing: they report to a real controller and follow its tables at once."""

from __future__ import annotations

from typing import Any

import numpy as np

from cluster.balance.load import LoadStats, NodeLoad
from cluster.balance.placement import PlacementTable
from cluster.controller.members import NO_TABLE
from cluster.controller.state import Shape
from cluster.dispatch.client import ControlClient
from cluster.dispatch.handshake import Identity
from cluster.dispatch.kinds import Kind
from cluster.types import NodeId

Header = dict[str, Any]


class FakeMember:
    """One that syncs when it is told to. stats, load: what it reports."""

    def __init__(self, role: str, name: str, controller: str, **stats: Any) -> None:
        self.role, self.name, self.stats = role, name, stats
        self.load: Header | None = None
        self.table: PlacementTable | None = None
        self.prepared = NO_TABLE
        self.held: set[Any] = set()
        self._client = ControlClient(controller, identity=Identity(role, name, 1))

    def sync(self) -> Header:
        """Report, and follow what the answer says."""
        table = self.table
        known = NO_TABLE if table is None else (table.epoch, table.version)
        answer = self._client.call(
            Kind.SYNC,
            {
                "role": self.role,
                "id": self.name,
                "incarnation": 1,
                "address": f"127.0.0.1:{1 + len(self.name)}",
                "epoch": known[0],
                "table": known[1],
                "prepared": list(self.prepared),
                "ready": True,
                "error": None,
                "stats": self.stats | {"held": len(self.held)},
                "load": self.load,
            },
        ).header
        self._follow(answer)
        return dict(answer)

    def _follow(self, answer: Header) -> None:
        if answer["table"] is not None:
            self.table = PlacementTable.from_wire(answer["table"])
        if self.table is None:
            return
        mine, wanted = set(self.table.experts_of(NodeId(self.name))), set()
        if answer["next"] is not None:
            following = PlacementTable.from_wire(answer["next"])
            wanted = set(following.experts_of(NodeId(self.name)))
            self.prepared = (following.epoch, following.version)
        self.held |= mine | wanted
        if answer["settled"]:
            self.held = mine | wanted

    def close(self) -> None:
        self._client.close()


class FakeCluster:
    """Nodes, one router and one gateway of it; `turn` lets each sync once and returns what gateways see."""

    def __init__(self, controller: str, shape: Shape, memory_bytes: int = 0) -> None:
        self.nodes = [
            FakeMember("node", f"node-{i}", controller, memory_bytes=memory_bytes) for i in range(shape.nodes)
        ]
        self.router = FakeMember("router", "router-0", controller, kv_pages_used=3, prefix_hits=5)
        self.gateway = FakeMember("gateway", "gateway", controller)
        self._shape = shape

    def __enter__(self) -> FakeCluster:
        for _ in range(3):
            self.turn()
        return self

    def __exit__(self, *_: object) -> None:
        for member in (*self.nodes, self.router, self.gateway):
            member.close()

    def turn(self) -> Header:
        for member in (*self.nodes, self.router):
            member.sync()
        seen: Header = self.gateway.sync()["cluster"]
        return seen

    def compute(self, seed: int = 0) -> None:
        """As if the router had computed steps of a skewed load."""
        shape = self._shape
        rows = np.zeros((shape.layers, shape.experts))
        rng = np.random.default_rng(seed)
        rows[list(shape.sparse)] = rng.gamma(0.4, 10.0, (len(shape.sparse), shape.experts))
        nodes = {NodeId(node.name): NodeLoad(9.0, 100.0, 50.0, 0.5) for node in self.nodes}
        distinct = (rows > 0).sum(axis=1).astype(float)
        self.router.load = LoadStats(256.0, 1.0, 20.0, 20.0, rows, distinct, nodes).to_wire()
