"""A whole cluster of this machine without Ray: controller, nodes and routers, each in its own process."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection as Pipe
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from cluster.balance.placement import PlacementTable
from cluster.config import ControllerConfig, EngineConfig, NodeConfig
from cluster.controller.members import Role
from cluster.controller.state import Shape
from cluster.errors import StartFailed, Unavailable
from cluster.experiments.live.faults import RelayedNode
from cluster.experiments.live.metered import MeteredNode
from cluster.experiments.live.pace import PacedNode
from cluster.experiments.live.pin import pin
from cluster.experiments.sim.model import Device, Model
from cluster.expert.mapping import PAGE
from cluster.fleet.ask import Controller
from cluster.fleet.children import START_S, Child, children, family
from cluster.fleet.ports import free_port
from cluster.fleet.roles.controller import ControllerPlace, ControllerRole
from cluster.fleet.roles.gateway import GatewayRole
from cluster.fleet.roles.process import Place
from cluster.fleet.roles.router import RouterRole
from cluster.library.reader import Library
from kernels import warm
from kernels.layout import pad

HOST = "127.0.0.1"
CONTROL = ControllerConfig()
POLL_S = 0.05
MOVED_WITHIN_S = 120.0


@dataclass(frozen=True)
class LiveNode:
    """device: as slow as which; None: as fast as this machine, with core-seconds for service times.
    memory_bytes: as in NodeConfig. core: of this machine, the only one that it runs on; None: any. relayed:
    the link to it can be cut."""

    device: Device | None = None
    memory_bytes: int = 0
    core: int | None = None
    relayed: bool = False


def expert_model(library: Library, variant: str = "") -> Model:
    """The shape of a library's experts, as the simulator sees it."""
    spec = library.spec
    largest = max(ref.bytes for layer in library.variant(variant).blobs for ref in layer)
    weights = 3 * spec.hidden * spec.expert_width
    return Model(spec.hidden, spec.expert_width, 8 * largest / weights)


def expert_page_bytes(library: Library, variant: str = "") -> int:
    """Memory that the largest expert takes on a node."""
    return pad(max(ref.bytes for layer in library.variant(variant).blobs for ref in layer), PAGE)


@dataclass(frozen=True)
class LiveCluster:
    """controller: to ask. address: of the controller. place: of one more role, by its name. processes: of
    nodes and routers, by name.
    """

    controller: Controller
    address: str
    library: Library
    variant: str
    logs: str
    processes: Mapping[str, Child] = field(default_factory=dict)

    def place(self, name: str) -> Place:
        return Place(name, self.address, str(self.library.path), self.variant, self.logs)

    def wait_ready(self, members: int, within_s: float = START_S) -> dict[str, Any]:
        """The status once so many members are ready. Raises StartFailed with what keeps one from it."""
        deadline = time.monotonic() + within_s
        while True:
            status = self.controller.status()
            for member in status["members"]:
                if member["error"] is not None:
                    raise StartFailed(f"{member['id']}: {member['error'][1]}")
            if sum(member["ready"] for member in status["members"]) == members:
                return status
            if time.monotonic() > deadline:
                raise StartFailed(f"of {members} roles {len(status['members'])} came within {within_s:g} s")
            time.sleep(POLL_S)

    def router_address(self) -> str:
        members = self.controller.status()["members"]
        return next(str(one["address"]) for one in members if one["role"] == Role.ROUTER.value)

    def wait_moved(self) -> None:
        """Until the last table is in use and old copies may go. Raises Unavailable."""
        deadline = time.monotonic() + MOVED_WITHIN_S
        while time.monotonic() < deadline:
            status = self.controller.status()
            if not status["pending"] and status["settled"] and status["active"] == status["version"]:
                return
            time.sleep(POLL_S)
        raise Unavailable(f"experts still move after {MOVED_WITHIN_S:g} s")


@contextmanager
def live_cluster(
    library: Library,
    nodes: Sequence[LiveNode],
    routers: Sequence[EngineConfig] = (),
    variant: str = "",
    *,
    config: ControllerConfig = CONTROL,
    table: PlacementTable | None = None,
    model: Model | None = None,
) -> Iterator[LiveCluster]:
    """All roles, ready; they end with the context. Raises StartFailed, or what a role reported.

    Kernels are compiled before any role is started, which has a minute to be ready.
    config: of the controller; table: its first, over node-0, node-1 …; None deals the experts out.
    model: whose experts the paced nodes pretend to compute; None: the library's.
    """
    warm.compile_all(apart=True)
    spec = library.spec
    size = expert_page_bytes(library, variant)
    shape = Shape(len(nodes), spec.layers, spec.experts, spec.sparse_layers, size)
    model = model or expert_model(library, variant)
    variant = variant or library.manifest.default_variant
    with TemporaryDirectory(prefix="moemesh") as logs:
        epoch = str(Path(logs) / "epoch")
        place = ControllerPlace(shape, HOST, free_port(HOST), epoch, logs, config, table)
        address = f"{HOST}:{place.port}"
        with children(serve_controller, [(place,)]), Controller(address) as controller:
            live = LiveCluster(controller, address, library, variant, logs)
            wanted: list[tuple[Any, ...]] = [
                ("node", live.place(f"node-{number}"), node, model) for number, node in enumerate(nodes)
            ]
            wanted += [("router", live.place(f"router-{i}"), config) for i, config in enumerate(routers)]
            with family(serve_role, wanted) as started:
                live.wait_ready(len(wanted))
                names = [place.name for _, place, *_ in wanted]
                yield replace(live, processes=dict(zip(names, started, strict=True)))


class _Role(Protocol):
    def shutdown(self) -> None: ...


def serve_controller(pipe: Pipe, place: ControllerPlace) -> None:
    """What a controller's process runs."""
    _until_told(pipe, ControllerRole(place))


def serve_role(pipe: Pipe, role: str, place: Place, *more: Any) -> None:
    """What any other role's process runs. more: of a router its EngineConfig; of a gateway its
    GatewayConfig and the routers' EngineConfig; of a node its LiveNode and the Model that it computes."""
    if role != "node":
        _until_told(pipe, RouterRole(place, *more) if role == "router" else GatewayRole(place, *more))
        return
    node, model = more
    if node.core is not None:
        pin(node.core)
    config = NodeConfig(memory_bytes=node.memory_bytes)
    if node.relayed:
        _until_told(pipe, RelayedNode(place, config, node.device, model))
    elif node.device is None:
        _until_told(pipe, MeteredNode(place, config))
    else:
        _until_told(pipe, PacedNode(place, config, node.device, model))


def _until_told(pipe: Pipe, role: _Role) -> None:
    """Serve, and do as the parent says, until it closes its end of the pipe, or is gone."""
    with suppress(EOFError, ConnectionError):  # an error if it has not read what was sent
        pipe.send("serves")
        while True:
            getattr(role, pipe.recv())()
    role.shutdown()
