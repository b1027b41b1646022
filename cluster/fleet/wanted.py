"""Which processes a cluster has, where each runs and what it is made with: plain data, nothing started.

One controller, then the expert nodes, routers and gateways, in that order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from cluster.config import ClusterConfig
from cluster.controller.members import Role
from cluster.controller.state import Shape
from cluster.fleet.folder import EPOCH, LOGS, own_folder
from cluster.fleet.gateways import numbered
from cluster.fleet.roles.controller import ControllerPlace
from cluster.fleet.roles.process import Place

if TYPE_CHECKING:
    from cluster.fleet.file import FleetFile, Host
    from cluster.library.reader import Library

CONTROLLER = "controller"

NICE = 10
"""Of what computes, where gateway and clients are on the same cores: a step goes on for milliseconds, and who
was refused, or has a token to read, would wait for its end (docs/decisions/0036). 10 leaves two of them on a
core a fifth of it that somebody else wants wholly, so that heartbeats come in time."""


@dataclass(frozen=True)
class Plan:
    """config with the model behind it. library: its folder, absolute; model: its name; variant: never ""."""

    config: ClusterConfig
    library: str
    model: str
    variant: str
    shape: Shape


@dataclass(frozen=True)
class Wanted:
    """One process. role: key of actors.CLASSES; arguments: of that class; host: of the fleet, "" where there
    is one machine only."""

    role: str
    name: str
    arguments: tuple[Any, ...]
    host: str = ""


def count(wanted: Sequence[Wanted]) -> Counter[str]:
    """How many there are of each role."""
    return Counter(each.role for each in wanted)


def shape_of(library: Library, variant: str, nodes: int) -> Shape:
    """What the controller must place."""
    from cluster.expert.mapping import PAGE
    from kernels.layout import pad

    spec = library.spec
    largest = max(ref.bytes for layer in library.variant(variant).blobs for ref in layer)
    return Shape(nodes, spec.layers, spec.experts, spec.sparse_layers, pad(largest, PAGE))


def on_one_machine(plan: Plan, host: str, port: int, logs: str, epoch: str) -> tuple[Wanted, ...]:
    """host, port: where the controller listens. logs: folder; epoch: file of the controller's.

    What computes gives way to the gateway and to clients: all share the machine's cores.
    """
    config = plan.config

    def place(name: str, nice: int = 0) -> Place:
        return Place(
            name,
            f"{host}:{port}",
            plan.library,
            plan.variant,
            logs,
            config.log_format,
            config.tracing,
            nice=nice,
        )

    controller = ControllerPlace(
        plan.shape, host, port, epoch, logs, config.controller, log_format=config.log_format
    )
    found = [Wanted(CONTROLLER, CONTROLLER, (controller,))]
    for role, many, more in (
        (Role.NODE, config.nodes, (config.node,)),
        (Role.ROUTER, config.routers, (config.engine,)),
    ):
        names = [f"{role.value}-{number}" for number in range(many)]
        found += [Wanted(role.value, name, (place(name, NICE), *more)) for name in names]
    for number in range(config.gateways):
        name = Role.GATEWAY.value if config.gateways == 1 else f"{Role.GATEWAY.value}-{number}"
        own = numbered(config.gateway, number)
        found.append(Wanted(Role.GATEWAY.value, name, (place(name), own, config.engine)))
    return tuple(found)


def state_of(host: Host) -> str:
    """State folder of a fleet's machine."""
    return str(PurePosixPath(host.storage) / "state")


def _own(fleet: FleetFile, host: Host) -> Path:
    """Folder of the generation that is meant."""
    return own_folder(Path(state_of(host)), fleet.generation)


def library_of(fleet: FleetFile, host: Host) -> str:
    """Where the model is on a machine, "" for the bundled one; a relative folder is below its storage."""
    return str(PurePosixPath(host.storage) / fleet.model) if fleet.model else ""


def on_fleet(fleet: FleetFile, shape: Shape, variant: str) -> tuple[Wanted, ...]:
    """Every process listens on its host's address, at a port that the file says, and logs in its host's state
    folder. An expert node is called as its host."""
    head = fleet.head
    state = _own(fleet, head)
    controller = ControllerPlace(
        shape,
        head.address,
        head.ports.controller,
        str(state / EPOCH),
        str(state / LOGS),
        fleet.controller,
        log_format=fleet.log_format,
    )
    found = [Wanted(CONTROLLER, CONTROLLER, (controller,), head.name)]
    found += [_node(fleet, host, variant) for host in fleet.nodes]
    for host in fleet.hosts:
        found += [_router(fleet, host, variant, number) for number in range(host.routers)]
    for host in fleet.hosts:
        found += [_gateway(fleet, host, variant, number) for number in range(host.gateways)]
    return tuple(found)


def role_of(name: str) -> tuple[Role, str]:
    """(role, host) of a process of a fleet, by its name; of all but the controller."""
    for role in (Role.ROUTER, Role.GATEWAY):
        if name.startswith(f"{role.value}-"):
            return role, name.removeprefix(f"{role.value}-").rpartition("-")[0]
    return Role.NODE, name


def _node(fleet: FleetFile, host: Host, variant: str) -> Wanted:
    place = _place(fleet, host, host.name, variant, host.ports.node)
    return Wanted(Role.NODE.value, host.name, (place, host.node_config), host.name)


def _router(fleet: FleetFile, host: Host, variant: str, number: int) -> Wanted:
    name = f"router-{host.name}-{number}"
    place = _place(fleet, host, name, variant, host.ports.routers + number)
    return Wanted(Role.ROUTER.value, name, (place, fleet.engine), host.name)


def _gateway(fleet: FleetFile, host: Host, variant: str, number: int) -> Wanted:
    name = f"gateway-{host.name}-{number}"
    place = _place(fleet, host, name, variant, 0)
    return Wanted(Role.GATEWAY.value, name, (place, fleet.gateway_of(host, number), fleet.engine), host.name)


def _place(fleet: FleetFile, host: Host, name: str, variant: str, port: int) -> Place:
    return Place(
        name,
        f"{fleet.head.address}:{fleet.head.ports.controller}",
        library_of(fleet, host),
        variant,
        str(_own(fleet, host) / LOGS),
        fleet.log_format,
        fleet.tracing,
        host.address,
        port,
    )
