"""`up`: start everything, wait until it serves, or leave nothing behind.

    kernels (own process) ─┐
    Ray head ──────────────┴─► driver ─► all actors at once ─► every role ready ─► recorded as up

Everything that was started is in the record before the next step, so that whoever comes after a crash of this
process can end it.
"""

from __future__ import annotations

import dataclasses
import os
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

from cluster.config import ClusterConfig
from cluster.controller.members import Role
from cluster.controller.state import Shape
from cluster.errors import AlreadyUp, MoemeshError, StartFailed, Unavailable, error_from_wire
from cluster.fleet import head as ray_head
from cluster.fleet import ports, processes, stop
from cluster.fleet.ask import Controller
from cluster.fleet.folder import Folder, Record
from cluster.fleet.head import HOST, Head, last_line
from cluster.fleet.kernels import KernelWarmup
from cluster.fleet.processes import Mark
from cluster.fleet.roles.controller import ControllerPlace
from cluster.fleet.roles.process import Place
from cluster.fleet.signals import Signals

KERNELS_S = 900.0
"""A first compilation takes one to two minutes on two cores."""

RAY_S = 90.0
ACTORS_S = 120.0
READY_S = 600.0
"""Loading a large library from a slow disk takes minutes."""

POLL_S = 0.05


class Progress(Protocol):
    def phase(self, text: str) -> None:
        """What goes on now; replaces what was said before."""

    def done(self, text: str) -> None:
        """A phase that is over; stays on the screen."""


@dataclass(frozen=True)
class Plan:
    """config with the model behind it. library: its folder, absolute; model: its name; variant: never ""."""

    config: ClusterConfig
    library: str
    model: str
    variant: str
    shape: Shape


def launch(plan: Plan, folder: Folder, progress: Progress, signals: Signals) -> Record:
    """Start the cluster and return its record once it serves.

    signals: its context is open; a signal that it notes ends the start within a second or two.

    Raises AlreadyUp, PortInUse, StartFailed, or the error that a role reported. After any exception,
    KeyboardInterrupt included, no process, port or file of it is left; only the logs are, after a failure.
    """
    with folder.locked():
        _clear_the_way(folder, progress)
        gateway = plan.config.gateway
        ports.check_free(gateway.host, gateway.port, "--grpc")
        if gateway.http_port is not None:
            ports.check_free(gateway.http_host, gateway.http_port, "--http")
        start = _Start(plan, folder, progress, signals)
        try:
            return start.run()
        except BaseException as error:
            progress.phase("stopping what was started")
            start.tear_down(keep_logs=isinstance(error, MoemeshError))
            raise


def _clear_the_way(folder: Folder, progress: Progress) -> None:
    record = folder.read()
    if record is None:
        return
    if record.phase == "up" and record.alive():
        raise AlreadyUp(f"a cluster is up already at {record.grpc}; stop it first with `moemesh down`")
    progress.done("cleaned up after a cluster that had ended without `moemesh down`")
    stop.clean(record, folder)


class _Start:
    """One attempt. `run` may fail anywhere; `tear_down` then ends what there is."""

    def __init__(self, plan: Plan, folder: Folder, progress: Progress, signals: Signals) -> None:
        self._plan, self._folder, self._progress, self._signals = plan, folder, progress, signals
        self._started = time.monotonic()
        self._head: Head | None = None
        self._warmup: KernelWarmup | None = None
        self._connected = False
        self._roles: dict[str, Mark] = {}
        owner = processes.mark(os.getpid())
        assert owner is not None, "this process runs"
        self._record = Record(
            phase="starting",
            owner=owner,
            model=plan.model,
            variant=plan.variant,
            config=dataclasses.asdict(plan.config),
        )

    def run(self) -> Record:
        self._folder.clear_logs()
        self._folder.write_secrets()
        self._start_processes()
        self._prepare()
        self._start_actors()
        gateway = self._wait_ready()
        self._note(
            phase="up",
            grpc=str(gateway["address"]),
            http=str(gateway["stats"].get("http", "")),
            processes=tuple(processes.family(self._record.processes)),
        )
        _actors().disconnect()
        return self._record

    def tear_down(self, keep_logs: bool) -> None:
        with ExitStack() as steps:  # each is taken, in reverse order, whatever becomes of the others
            steps.callback(stop.clean, self._record, self._folder, keep_logs)
            if self._head is not None:
                steps.callback(self._head.end)
            if self._warmup is not None:
                steps.callback(self._warmup.end)
            if self._connected:
                steps.callback(_actors().disconnect)

    def _note(self, **changes: Any) -> None:
        self._record = dataclasses.replace(self._record, **changes)
        self._folder.write(self._record)

    def _start_processes(self) -> None:
        self._head = Head(self._folder, self._plan.config.wire_security)
        self._note(temp=str(self._head.temp))
        mark = self._head.start()
        self._note(processes=(mark,))
        self._warmup = KernelWarmup(self._head.environment, self._folder.logs / "kernels.log")
        if warming := self._warmup.mark:
            self._note(processes=(mark, warming))

    def _prepare(self) -> None:
        """Wait for Ray and the kernels, which get ready side by side; import Ray in the meantime."""
        assert self._head is not None
        assert self._warmup is not None
        os.environ.update(ray_head.driver_variables(self._head.environment))
        self._progress.phase("starting Ray, loading kernels")
        _actors()
        address, warm = "", False
        while not (address and warm):
            self._signals.check()
            if not address and (address := self._head.address() or ""):
                self._note(ray=address)
                self._progress.done(self._timed(f"Ray at {address}"))
            if not warm and (warm := self._warmup.finished()):
                self._progress.done(self._timed(f"kernels: {self._warmup.summary}"))
            waiting = [] if address else ["starting Ray"]
            if not warm:
                waiting.append(f"kernels {self._warmup.done}/{self._warmup.total or '?'}")
            self._progress.phase(", ".join(waiting) or "connecting to Ray")
            self._check_deadline(RAY_S if not address else KERNELS_S, "Ray" if not address else "the kernels")
            time.sleep(POLL_S)
        self._progress.phase("connecting to Ray")
        self._connected = True
        _actors().connect(address)
        self._signals.listen()

    def _start_actors(self) -> None:
        plan, config = self._plan, self._plan.config
        port = ports.free_port(HOST)
        logs = str(self._folder.logs)
        self._note(controller=f"{HOST}:{port}")
        epoch = str(self._folder.epoch)
        controller = ControllerPlace(
            plan.shape, HOST, port, epoch, logs, config.controller, log_format=config.log_format
        )
        wanted: dict[str, tuple[str, tuple[Any, ...]]] = {"controller": ("controller", (controller,))}
        for role, count, more in (
            (Role.NODE, config.nodes, (config.node,)),
            (Role.ROUTER, config.routers, (config.engine,)),
            (Role.GATEWAY, 1, (config.gateway, config.engine)),
        ):
            for number in range(count):
                name = role.value if role is Role.GATEWAY else f"{role.value}-{number}"
                place = Place(
                    name,
                    self._record.controller,
                    plan.library,
                    plan.variant,
                    logs,
                    config.log_format,
                    config.tracing,
                )
                wanted[name] = (role.value, (place, *more))
        self._progress.phase(f"starting {len(wanted)} processes")
        self._signals.check()
        actors = {name: _actors().spawn(role, name, *args) for name, (role, args) in wanted.items()}
        self._wait_pids(actors)

    def _wait_pids(self, actors: dict[str, Any]) -> None:
        deadline = time.monotonic() + ACTORS_S
        for name, actor in actors.items():
            while (pid := _actors().process_id(name, actor, timeout_s=0.5)) is None:
                self._signals.check()
                self._check_roles()
                self._progress.phase(f"starting processes, {len(self._roles)}/{len(actors)} run")
                if time.monotonic() > deadline:
                    raise StartFailed(f"{name} did not start within {ACTORS_S:g} s; see {self._folder.logs}")
            mark = processes.mark(pid)
            if mark is None:
                raise self._died(name, pid)
            self._roles[name] = mark
        assert self._head is not None
        self._note(processes=tuple(processes.family(self._record.processes)))
        self._progress.done(self._timed(f"{len(actors)} processes"))

    def _wait_ready(self) -> dict[str, Any]:
        """Wait until every role is ready; returns the gateway as the controller knows it."""
        deadline = time.monotonic() + READY_S
        expected = len(self._roles) - 1  # the controller is no member of its own cluster
        with Controller(self._record.controller, self._folder) as controller:
            while True:
                self._signals.check()
                self._check_roles()
                status = self._status(controller)
                members = status["members"]
                self._check_members(members)
                if len(members) == expected and all(member["ready"] for member in members):
                    break
                self._progress.phase(_describe(status, self._plan.config))
                if time.monotonic() > deadline:
                    raise StartFailed(
                        f"{_describe(status, self._plan.config)} after {READY_S:g} s; see {self._folder.logs}"
                    )
                time.sleep(POLL_S)
        self._progress.done(self._timed(_describe(status, self._plan.config)))
        return next(member for member in members if member["role"] == Role.GATEWAY)

    def _status(self, controller: Controller) -> dict[str, Any]:
        try:
            return controller.status()
        except Unavailable:  # it listens soon, or `_check_roles` finds it dead
            return {"members": [], "expected_nodes": self._plan.config.nodes, "active": 0}

    def _check_roles(self) -> None:
        for name, mark in self._roles.items():
            if not processes.alive(mark):
                raise self._died(name, mark.pid)
        assert self._head is not None
        self._head.check()

    def _check_members(self, members: list[dict[str, Any]]) -> None:
        for member in members:
            name = member["id"]
            if member["error"] is not None:
                error, message = member["error"]
                raise _named(error_from_wire(error, message), name)
            if member["stats"].get("restarts"):  # Ray was faster than our look at the process
                raise self._died(name, self._roles[name].pid)

    def _died(self, name: str, pid: int) -> StartFailed:
        log = self._folder.logs / f"{name}.log"
        return StartFailed(
            f"{name} (process {pid}) died while starting; last words: {last_line(log)!r}; see {log}"
        )

    def _check_deadline(self, limit_s: float, what: str) -> None:
        if time.monotonic() - self._started > limit_s:
            raise StartFailed(f"{what} took longer than {limit_s:g} s; see {self._folder.logs}")

    def _timed(self, text: str) -> str:
        return f"{text} ({time.monotonic() - self._started:.1f} s)"


def _named(error: MoemeshError, name: str) -> MoemeshError:
    return type(error)(f"{name}: {error}")


def _describe(status: dict[str, Any], config: ClusterConfig) -> str:
    """Where the roles are: how many nodes have loaded how much, routers, gateway."""
    of = {role: [m for m in status["members"] if m["role"] == role] for role in Role}
    loaded = sum(m["ready"] for m in of[Role.NODE])
    resident = sum(int(m["stats"].get("resident_bytes", 0)) for m in of[Role.NODE])
    routers = sum(m["ready"] for m in of[Role.ROUTER])
    gateway = "ready" if any(m["ready"] for m in of[Role.GATEWAY]) else "waiting"
    weights = f"loaded {resident / 1e6:.1f} MB"
    if config.node.memory_bytes and not resident:
        weights = f"read experts as they are asked for, within {config.node.memory_bytes / 1e6:.1f} MB each"
    return f"nodes {loaded}/{config.nodes} {weights}, routers {routers}/{config.routers}, gateway {gateway}"


def _actors() -> Any:
    """Ray, imported when first needed: it takes half a second, and reads its environment then."""
    from cluster.fleet import actors

    return actors
