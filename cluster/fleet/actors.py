"""The one place where a plain role class becomes a Ray actor."""

from __future__ import annotations

import logging
import time
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError

from cluster.errors import StartFailed
from cluster.fleet import processes
from cluster.fleet.raynode import LABEL, SLOT
from cluster.fleet.roles.controller import ControllerRole
from cluster.fleet.roles.gateway import GatewayRole
from cluster.fleet.roles.node import NodeRole
from cluster.fleet.roles.router import RouterRole

CLASSES: dict[str, type] = {
    "controller": ControllerRole,
    "node": NodeRole,
    "router": RouterRole,
    "gateway": GatewayRole,
}

NAMESPACE = "moemesh"
ASK_S, END_S, POLL_S = 10.0, 30.0, 0.05
CLOSE_S = 600.0
"""A gateway may let its requests go on for as long as its `drain_s` says."""


def namespace(generation: int) -> str:
    """Of Ray's, in which a generation's actors have their names: those of two never meet."""
    return f"{NAMESPACE}-{generation}" if generation else NAMESPACE


def connect(address: str, machine: str | None = None, generation: int = 0) -> None:
    """Make this process a driver of the Ray at `address`. machine: address of this one, where Ray runs under
    several. generation: whose actors it starts."""
    ray.init(
        address=address,
        _node_ip_address=machine,
        namespace=namespace(generation),
        log_to_driver=False,
        configure_logging=False,
        logging_level=logging.ERROR,
    )


def disconnect() -> None:
    """Detached actors live on. Does nothing if this process is no driver."""
    ray.shutdown()


def hosts() -> set[str]:
    """Names of a fleet's machines that are part of this Ray now."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return {node["Labels"].get(LABEL, "") for node in nodes if node["Alive"]}


def running() -> set[str]:
    """Names of this generation's actors that are there already, or being started again."""
    return set(ray.util.list_named_actors())


def running_of(generation: int) -> set[str]:
    """As `running`, of one that this process may be no driver of."""
    found: list[Any] = ray.util.list_named_actors(all_namespaces=True)
    return {one["name"] for one in found if one["namespace"] == namespace(generation)}


def options(name: str, host: str = "") -> dict[str, Any]:
    """Detached and named, restarted for ever, no CPU of Ray's but one of our slots.

    host: of the fleet, on which alone it may run, also after a restart: until that is back it waits; "" where
    there is one machine only.

    A call is never repeated: it may have been carried out although an error came back.
    """
    return {
        "name": name,
        "lifetime": "detached",
        "get_if_exists": True,
        "num_cpus": 0,
        "resources": {SLOT: 1},
        "max_restarts": -1,
        "max_task_retries": 0,
        **({"label_selector": {LABEL: host}} if host else {}),
    }


def spawn(role: str, name: str, *args: Any, host: str = "") -> Any:
    """Start `CLASSES[role](*args)` in a process of its own; returns the actor before it runs."""
    return ray.remote(**options(name, host))(CLASSES[role]).remote(*args)


def end(name: str, generation: int, here: bool = True) -> None:
    """Have the actor of this name close its service, end it for good, and wait until its name is free and, if
    it runs on this host, its process. Nothing, if there is none. Raises StartFailed if it does not end."""
    try:
        actor: Any = ray.get_actor(name, namespace=namespace(generation))
    except ValueError:
        return
    mark = None
    with suppress(RayError):  # it does not answer: its end will be abrupt
        pid: int = ray.get(actor.pid.remote(), timeout=ASK_S)
        mark = processes.mark(pid) if here else None
        ray.get(actor.shutdown.remote(), timeout=CLOSE_S)
    ray.kill(actor, no_restart=True)
    deadline = time.monotonic() + END_S
    while _is_known(name, generation) or (mark is not None and processes.alive(mark)):
        if time.monotonic() > deadline:
            raise StartFailed(f"{name} does not end; end its process by hand, and try again")
        time.sleep(POLL_S)


def _is_known(name: str, generation: int) -> bool:
    try:
        ray.get_actor(name, namespace=namespace(generation))
    except ValueError:
        return False
    return True


def process_id(name: str, actor: Any, timeout_s: float) -> int | None:
    """The actor's pid, None if it is not there in time. Raises StartFailed if it could not be made."""
    try:
        pid: int = ray.get(actor.pid.remote(), timeout=timeout_s)
        return pid
    except GetTimeoutError:
        return None
    except RayError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise StartFailed(f"{name} could not be started: {lines[-1] if lines else error!r}") from error
