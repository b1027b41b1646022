"""A role of the cluster as a process of a host, without Ray: its plain class, until its input ends.

    python tests/fleet/role.py SPEC      (JSON: the fields of `RoleSpec`)

Prints "starts". A controller answers every line of its input with its status, as a line of JSON.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from cluster.balance.placement import PlacementTable
from cluster.config import ControllerConfig, EngineConfig, GatewayConfig, NodeConfig
from cluster.controller.state import Shape
from cluster.dispatch.client import ControlClient
from cluster.dispatch.handshake import Identity
from cluster.dispatch.kinds import Kind
from cluster.experiments.live.cluster import expert_page_bytes
from cluster.experiments.live.failover import in_copies
from cluster.fleet.roles.controller import ControllerPlace, ControllerRole
from cluster.fleet.roles.gateway import GatewayRole
from cluster.fleet.roles.node import NodeRole
from cluster.fleet.roles.process import Place
from cluster.fleet.roles.router import RouterRole
from cluster.library.reader import Library

STATUS_S = 5.0


@dataclass(frozen=True)
class RoleSpec:
    """role: controller, node, router or gateway. host: the address that it listens on. controller: host:port.
    copies: of every expert, in a controller's first table over `nodes` nodes, at least as many for ever.
    engine: fields of a router's EngineConfig, which a gateway knows too."""

    role: str
    name: str
    host: str
    controller: str
    library: str
    logs: str
    nodes: int = 0
    copies: int = 1
    engine: dict[str, Any] = field(default_factory=dict)


class Role(Protocol):
    def shutdown(self) -> None: ...


def main(spec: RoleSpec) -> None:
    role = start(spec)
    print("starts", flush=True)
    if spec.role == "controller":
        identity = Identity("tool", "fleet")
        with ControlClient(spec.controller, identity=identity) as client:
            for _ in sys.stdin:
                status = client.call(Kind.STATUS, {"detail": False}, timeout_s=STATUS_S)
                print(json.dumps(dict(status.header)), flush=True)
    sys.stdin.read()
    role.shutdown()


def start(spec: RoleSpec) -> Role:
    library = Library.open(spec.library)
    variant = library.manifest.default_variant
    place = Place(spec.name, spec.controller, spec.library, variant, spec.logs, host=spec.host)
    engine = EngineConfig(**spec.engine)
    if spec.role == "node":
        return NodeRole(place, NodeConfig(host=spec.host))
    if spec.role == "router":
        return RouterRole(place, engine)
    if spec.role == "gateway":
        return GatewayRole(place, GatewayConfig(host=spec.host, insecure=True), engine)
    return ControllerRole(_controller(spec, library))


def _controller(spec: RoleSpec, library: Library) -> ControllerPlace:
    shape, table = first_table(library, spec.nodes, spec.copies)
    epoch = str(Path(spec.logs) / "epoch")
    port = int(spec.controller.rsplit(":", 1)[1])
    config = ControllerConfig(min_replicas=spec.copies)
    return ControllerPlace(shape, spec.host, port, epoch, spec.logs, config, table)


def first_table(library: Library, nodes: int, copies: int) -> tuple[Shape, PlacementTable]:
    model = library.spec
    size = expert_page_bytes(library)
    shape = Shape(nodes, model.layers, model.experts, model.sparse_layers, size)
    return shape, in_copies(library, nodes, copies)


if __name__ == "__main__":
    main(RoleSpec(**json.loads(sys.argv[1])))
