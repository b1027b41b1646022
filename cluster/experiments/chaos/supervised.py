"""A cluster whose processes may be killed and are started again, as a supervisor of theirs would do."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from cluster.config import ControllerConfig, EngineConfig, GatewayConfig
from cluster.controller.members import Health, Role
from cluster.controller.state import Shape as Placed
from cluster.errors import StartFailed, Unavailable
from cluster.experiments.chaos.disk import copies, damage
from cluster.experiments.chaos.schedule import CONTROLLER, Shape
from cluster.experiments.live.cluster import (
    HOST,
    LiveNode,
    expert_model,
    expert_page_bytes,
    serve_controller,
    serve_role,
)
from cluster.experiments.live.pace import row_rate
from cluster.fleet.ask import Controller
from cluster.fleet.children import Started
from cluster.fleet.control import new_incarnation
from cluster.fleet.ports import free_port
from cluster.fleet.roles.controller import ControllerPlace
from cluster.fleet.roles.process import Place
from cluster.library.reader import Library
from kernels import warm

RATE = 8_000.0
"""Rows per second of a node: a small part of what a core computes, so that nodes do not share the cores."""

REPLICATE_AFTER_S = 2.0
POLL_S = 0.1

Members = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class _Running:
    """since: the least incarnation that its process may have."""

    process: Started
    since: int


@dataclass
class Supervised:
    """Lifecycle: `supervised`. controller: to ask; it is connected anew when its process is.

    gateways: address by name; the same after a restart, as the controller's is. disks: what each node has.
    """

    shape: Shape
    controller: Controller
    gateways: dict[str, str]
    recipes: dict[str, tuple[Any, ...]]
    disks: dict[str, Library]
    running: dict[str, _Running] = field(default_factory=dict)

    def start(self, name: str) -> None:
        """A new process; `ready` says when it takes work."""
        since = new_incarnation(time.time())
        self.running[name] = _Running(Started(*self.recipes[name]), since)

    def kill(self, name: str) -> None:
        self.running.pop(name).process.kill()

    def tamper(self, name: str, number: int) -> None:
        """Damage some of a killed node's files, the same ones for the same number."""
        damage(self.disks[name], number)

    def signal(self, name: str, what: signal.Signals) -> None:
        os.kill(self.pid(name), what)

    def tell(self, name: str, command: str) -> None:
        self.running[name].process.tell(command)

    def pid(self, name: str) -> int:
        return self.running[name].process.pid

    def members(self) -> Members:
        """Those whose processes run, as the controller sees them; none while it does not answer."""
        try:
            members = self.controller.status()["members"]
        except Unavailable:
            return {}
        return {
            member["id"]: member
            for member in members
            if (one := self.running.get(member["id"])) is not None and member["incarnation"] >= one.since
        }

    def ready(self, role: str) -> set[str]:
        """Names of those that take work; nodes do when they have loaded what they were given."""
        if role == CONTROLLER:
            return {CONTROLLER} if self.members() else set()
        return {
            name for name, member in self.members().items() if member["role"] == role and is_ready(member)
        }

    def lacks(self) -> str:
        """What keeps the cluster from being whole, in words; "" for nothing."""
        try:
            status = self.controller.status(detail=True)
        except Unavailable as error:
            return str(error)
        members = self.members()
        names = [name for role in Role for name in self.shape.names(role.value)]
        if away := [name for name in names if name not in members or not is_ready(members[name])]:
            return f"not ready: {', '.join(away)}"
        if status["pending"] or not status["settled"] or status["active"] != status["version"]:
            return "experts are being moved"
        holders = [len(one) for layer in status["table"]["replicas"] for one in layer]
        fewest = min(holders, default=0)
        wanted = self.shape.copies
        return "" if fewest >= wanted else f"an expert has {fewest} of {wanted} copies"


def is_ready(member: dict[str, Any]) -> bool:
    return bool(member["ready"]) and member["health"] == Health.ALIVE.value and member["error"] is None


@contextmanager
def supervised(library: Library, shape: Shape, logs: Path | None = None) -> Iterator[Supervised]:
    """All roles, started, not yet ready; they end with the context. logs: folder for their logs; None: one
    that goes with the context."""
    warm.compile_all(apart=True)
    with TemporaryDirectory(prefix="moemesh") as folder:
        logs = logs or Path(folder)
        logs.mkdir(parents=True, exist_ok=True)
        port = free_port(HOST)
        with Controller(f"{HOST}:{port}") as controller:
            gateways = {name: f"{HOST}:{free_port(HOST)}" for name in shape.names(Role.GATEWAY.value)}
            disks = copies(library, Path(folder), shape.names(Role.NODE.value))
            recipes = _recipes(library, shape, disks, Path(folder), str(logs), port, gateways)
            cluster = Supervised(shape, controller, gateways, recipes, disks)
            try:
                for name in recipes:
                    cluster.start(name)
                yield cluster
            finally:
                _end(cluster)


def _end(cluster: Supervised) -> None:
    """The controller last: the others tell it that they leave."""
    roles = [one.process for name, one in cluster.running.items() if name != CONTROLLER]
    for process in roles:
        os.kill(process.pid, signal.SIGCONT)
        process.release()
    controller = [one.process for name, one in cluster.running.items() if name == CONTROLLER]
    for process in (*roles, *controller):
        process.end()


def _recipes(
    library: Library,
    shape: Shape,
    disks: dict[str, Library],
    folder: Path,
    logs: str,
    port: int,
    gateways: dict[str, str],
) -> dict[str, tuple[Any, ...]]:
    """(target, arguments) of every process, by name. disks: of the nodes; the others have `library`."""
    spec, variant = library.spec, library.manifest.default_variant
    placed = Placed(shape.nodes, spec.layers, spec.experts, spec.sparse_layers, expert_page_bytes(library))
    control = ControllerConfig(min_replicas=shape.copies, replicate_after_s=REPLICATE_AFTER_S)
    place = ControllerPlace(placed, HOST, port, str(folder / "epoch"), logs, control)
    model = expert_model(library)
    node = LiveNode(row_rate(RATE, model), relayed=True)
    engine = EngineConfig()

    def at(name: str) -> Place:
        return Place(name, f"{HOST}:{port}", str(disks.get(name, library).path), variant, logs)

    recipes: dict[str, tuple[Any, ...]] = {CONTROLLER: (serve_controller, (place,))}
    for name in shape.names(Role.NODE.value):
        recipes[name] = serve_role, ("node", at(name), node, model)
    for name in shape.names(Role.ROUTER.value):
        recipes[name] = serve_role, ("router", at(name), engine)
    for name, address in gateways.items():
        config = GatewayConfig(port=int(address.rpartition(":")[2]))
        recipes[name] = serve_role, ("gateway", at(name), config, engine)
    return recipes


def wait_whole(cluster: Supervised, within_s: float) -> None:
    """Raises StartFailed with what keeps the cluster from being whole."""
    deadline = time.monotonic() + within_s
    while lacks := cluster.lacks():
        if time.monotonic() > deadline:
            raise StartFailed(f"the cluster was not whole within {within_s:g} s: {lacks}")
        time.sleep(POLL_S)
