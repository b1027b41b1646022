"""On a host of a fleet: its part of a change of the model, from the roles of one generation to another's.

    looked at ─► noted (head) ─► controller, node ─► routers ─► gateways ─► active (head) ─► the old ones end

Each step leaves alone what is as it shall be, so that it may be taken again, or to go back. What serves can
do without what was ended for the other's sake, so that on the way back gateways are first.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from cluster.controller.members import Health, Role
from cluster.controller.orders import Orders
from cluster.controller.state import Shape
from cluster.errors import AlreadyUp, OutOfMemoryBudget, PortInUse, StartFailed, Unavailable, UnknownNode
from cluster.fleet import gateways, generations, ports, raynode
from cluster.fleet.ask import Controller, patient_status
from cluster.fleet.file import FleetFile
from cluster.fleet.folder import Folder, forget_controller
from cluster.fleet.generations import Generation, Generations, Turn
from cluster.fleet.machine import Machine, Progress, Quiet
from cluster.fleet.memory import free_memory
from cluster.fleet.ports import resolve
from cluster.fleet.prepare import controller_of, joined, wanted_of
from cluster.fleet.renew import count_anew
from cluster.fleet.room import OVERHEAD_BYTES, fits_beside, needed_bytes
from cluster.fleet.serve import noted, plan_of
from cluster.fleet.settling import Settling, member_of
from cluster.fleet.signals import Signals
from cluster.fleet.starting import Starting
from cluster.fleet.wanted import CONTROLLER, Wanted, library_of, on_fleet, role_of
from cluster.library.bundled import open_model

ENDING = (Role.GATEWAY.value, Role.ROUTER.value, Role.NODE.value)
"""In this order, and the controller when they have ended on every host."""

ROUTER_S = 60.0
"""For so long a step waits for a router that Ray starts anew."""

NO_SHAPE = Shape(0, 0, 0, ())
"""Of a fleet whose roles are only to be named: their library may be what is wrong."""


class Step:
    """One host's part. plain: the fleet file as it is."""

    def __init__(
        self, plain: FleetFile, host: str, folder: Folder, turn: Turn, progress: Progress, signals: Signals
    ) -> None:
        self._turn, self._progress, self._signals = turn, progress, signals
        self._to = generations.of_generation(plain, turn.to)
        self._of = generations.of_generation(plain, turn.of)
        self._host = next(one for one in self._to.hosts if one.name == host)
        self._folder = Folder(folder.path, turn.to.number)
        self._before = Folder(folder.path, turn.of.number)

    def look(self) -> dict[str, Any]:
        """Whether this host can serve the other model: {"digest", "missing": blobs of experts it lacks}.

        Nothing is started. Raises LibraryError, OutOfMemoryBudget, PortInUse, ConfigError.
        """
        host, to = self._host, self._turn.to
        library = open_model(library_of(self._to, host))
        refs = tuple(library.variant(to.variant).refs())
        if host.head:
            plan_of(self._to, library)
        if host.hub:
            library.require_common()
        for use in self._to.role_ports(host):
            for port in range(use.first, use.last + 1):
                if said := ports.problem(host.address, port):
                    raise PortInUse(
                        f"port {port} of host {host.name} cannot be used ({said}), and the other model needs "
                        "it; stop what uses it, or choose another ports.spare in the fleet file"
                    )
        if host.memory_bytes or host.routers:
            with Controller(controller_of(self._of), self._before) as controller:
                self._fits(controller)
        return {"digest": library.digest, "missing": len(library.blobs.missing(refs))}

    def begin(self) -> dict[str, Any]:
        """On the head: note what is about to be. What operators have asked of the one controller, the other
        one knows. Raises AlreadyUp if another change was faster."""
        turn, orders = self._turn, _orders(self._before).of_operators.to_text()
        with self._folder.locked():
            now = generations.read(self._folder)
            if now is not None and (now.other is not None or not now.active.same(turn.of)):
                raise AlreadyUp("another change of the model has begun meanwhile; wait for it")
            forget_controller(self._folder.epoch.parent)
            self._folder.orders.parent.mkdir(exist_ok=True)
            self._folder.orders.write_text(orders)
            generations.write(self._folder, Generations(turn.of, turn.to, orders))
        return {}

    def nodes(self) -> dict[str, Any]:
        """On the head the controller, then the node, which has no experts before all are there."""
        with self._driving() as machine:
            for each in self._mine(CONTROLLER):
                self._start([each], machine)
                with self._controller() as controller:
                    patient_status(controller)
            for each in self._mine(Role.NODE):
                self._node(each, machine)
        return {}

    def routers(self) -> dict[str, Any]:
        """Until they are ready, and with them every node."""
        with self._driving() as machine:
            nodes = [each for each in wanted_of(self._to, self._host) if each.role == Role.NODE]
            starting = self._start([*nodes, *self._mine(Role.ROUTER)], machine)
            starting.wait_ready(controller_of(self._to))
        return {}

    def gateways(self) -> dict[str, Any]:
        """One after the other: the old one lets its requests end, the new one is ready once it has got a
        token of the other model. Raises Unavailable, before the old one ends, if no router has that; else
        StartFailed, or what it reported."""
        with self._driving() as machine:
            for each in self._mine(Role.GATEWAY):
                if each.name not in self._running(self._turn.to):
                    self._await_router()
                self._end(each.name)
                self._start([each], machine).wait_ready(controller_of(self._to))
                self._progress.done(machine.watch.timed(f"{each.name} serves {self._turn.to.told}"))
        return {}

    def commit(self) -> dict[str, Any]:
        """On the head: from now on the other generation is the fleet. It knows what operators have asked of
        the one before, and nodes that had to end for the sake of another model get experts again."""
        with self._driving() as machine:
            wanted = wanted_of(self._to, self._host)
            # `_start` knows which run already: that Ray has started one of those anew is no failure.
            members = self._start(wanted, machine).wait_ready(controller_of(self._to))
            self._settle()
            plan = plan_of(self._to, open_model(library_of(self._to, self._host)))
            generations.write(self._folder, Generations(self._turn.to, self._turn.of, self._base))
            machine.note(phase="up", **noted(self._to, plan), **gateways.noted(members))
            if not self._turn.back:
                self._follow_operators()  # once more: until now they asked the one before
        return {}

    def end(self) -> dict[str, Any]:
        """What runs here of the old generation, but for its controller."""
        with self._driving():
            for role in ENDING:
                for name in self._old(role):
                    self._end(name)
        return {}

    def strays(self) -> dict[str, Any]:
        """On the head: what runs of the old generation though the fleet file names it no more. Its gateways
        may have requests still, for which the others stay."""
        with self._driving():
            named = {each.name for each in on_fleet(self._of, NO_SHAPE, self._turn.of.variant)}
            for name in sorted(self._running(self._turn.of) - named, key=_when_to_end):
                self._end(name, here=role_of(name)[1] == self._host.name)
        return {}

    def finish(self) -> dict[str, Any]:
        """On the head, when all else of the old generation has ended: its controller."""
        with self._driving():
            self._end(CONTROLLER)
            forget_controller(self._before.epoch.parent)
            generations.write(self._folder, Generations(self._turn.to))
        return {}

    def _mine(self, role: str) -> list[Wanted]:
        every = wanted_of(self._to, self._host)
        return [each for each in every if (each.host, each.role) == (self._host.name, role)]

    def _old(self, role: str) -> list[str]:
        every = on_fleet(self._of, NO_SHAPE, self._turn.of.variant)
        return [each.name for each in every if (each.host, each.role) == (self._host.name, role)]

    def _node(self, node: Wanted, machine: Machine) -> None:
        missed = node.name not in self._running(self._turn.to)
        if missed and self._turn.back:  # it had to go for the other one, which goes for it now
            self._end(node.name)
        elif missed:
            self._make_room(node.name)
        self._start([node], machine).wait_joined(controller_of(self._to))

    def _settle(self) -> None:
        if not self._turn.back:  # else it is the one that they have asked
            self._follow_operators()
        with self._controller() as controller:
            settling = Settling(controller, self._progress, self._signals)
            for member in patient_status(controller)["members"]:
                if member.get("for_upgrade"):
                    settling.give_back(member["id"])

    def _follow_operators(self) -> None:
        """Have this controller asked for what operators have ordered of the other one since it was looked."""
        here, since = _orders(self._folder), _orders(self._before)
        wanted = here.following(Orders.from_text(self._base) if self._base else since, since)
        with self._controller() as controller:
            for node in sorted(here.drained - wanted.drained):  # first, since they make room
                self._undrain(controller, node)
            for node in sorted(wanted.of_operators.drained - here.of_operators.drained):
                self._drain(controller, node)
            if wanted.tiers != here.tiers:
                controller.offer(wanted.tiers)
        now = generations.read(self._folder)
        assert now is not None, "`begin` has noted it"
        generations.write(self._folder, replace(now, orders=since.of_operators.to_text()))

    @property
    def _base(self) -> str:
        """What operators had ordered when it was looked last."""
        now = generations.read(self._folder)
        return "" if now is None else now.orders

    def _drain(self, controller: Controller, node: str) -> None:
        try:
            controller.drain(node)
        except Unavailable:  # others are being moved
            controller.drain(node, later=True)
        except (OutOfMemoryBudget, UnknownNode) as error:
            self._progress.done(f"{error}. It was drained while the model was changed, and is no more")

    def _undrain(self, controller: Controller, node: str) -> None:
        try:
            controller.undrain(node, fill=True)
        except (OutOfMemoryBudget, Unavailable):
            controller.undrain(node)
            self._progress.done(f"{node} may hold experts again; `moemesh rebalance --force` gives it some")

    def _await_router(self) -> None:
        """Raises Unavailable if there is none to be waited for."""
        with self._controller() as controller:
            settling = Settling(controller, self._progress, self._signals)
            try:
                settling.until(lambda: _serves(controller.status()), "a router", ROUTER_S)
            except StartFailed as error:
                raise Unavailable(
                    f"no router of {self._turn.to.told} is ready ({error}), so that no gateway changes over "
                    f"to it; see {self._folder.logs}, or end the fleet and start it again"
                ) from None

    def _controller(self) -> Controller:
        return Controller(controller_of(self._to), self._folder)

    def _make_room(self, node: str) -> None:
        """Have the old node end where there is no memory for both. Raises OutOfMemoryBudget where that is not
        enough, or the others have no room for its experts."""
        with Controller(controller_of(self._of), self._before) as controller:
            if self._fits(controller):
                return
            self._progress.done(f"{node}: no memory for two models; others take what it holds")
            settling = Settling(controller, self._progress, self._signals)
            try:
                settling.drain(node)
            except BaseException:
                settling.take_back(node)
                raise
        self._end(node)

    def _fits(self, controller: Controller) -> bool:
        library = open_model(library_of(self._to, self._host))
        experts = sum(ref.bytes for ref in library.variant(self._turn.to.variant).refs())
        member = member_of(patient_status(controller), self._host.name)
        held = 0 if member is None else OVERHEAD_BYTES + int(member["stats"].get("resident_bytes", 0))
        needed = needed_bytes(self._host, self._to.engine, experts)
        return fits_beside(self._host.name, free_memory(), needed, held)

    def _start(self, wanted: Sequence[Wanted], machine: Machine) -> Starting:
        """Returns when all processes run; those that did already are left alone."""
        there = self._running(self._turn.to)
        for each in wanted:
            if each.host == self._host.name and each.name not in there:
                self._progress.phase(f"{each.name} starts")
                count_anew(self._folder.logs, each.name)
        starting = self._starting(wanted, machine)
        starting.spawn()
        machine.note_processes()
        return starting

    def _starting(self, wanted: Sequence[Wanted], machine: Machine) -> Starting:
        return Starting(wanted, self._folder, Quiet(), machine.watch, self._signals.check, self._host.name)

    def _running(self, generation: Generation) -> set[str]:
        """Names of its roles on all hosts. For a driver: Ray reads its environment, which `_driving` sets,
        when it is imported."""
        from cluster.fleet import actors

        return actors.running_of(generation.number)

    def _end(self, name: str, here: bool = True) -> None:
        from cluster.fleet import actors

        self._progress.phase(f"{name} of {self._turn.of.told} ends")
        actors.end(name, self._turn.of.number, here)

    @contextmanager
    def _driving(self) -> Iterator[Machine]:
        """This process is a driver of Ray, for the generation that shall be, while the context lasts."""
        address = resolve(self._host.address)
        environment = raynode.environment(self._folder, self._to.wire_security, address)
        os.environ.update(raynode.driver_variables(environment))
        from cluster.fleet import actors  # Ray reads its environment when it is imported

        with self._folder.locked():
            record = joined(self._host, self._folder)
            actors.connect(record.ray, address, self._turn.to.number)
            try:
                self._signals.listen()
                yield Machine(self._folder, record, self._progress, self._signals)
            finally:
                actors.disconnect()


def _orders(folder: Folder) -> Orders:
    """What operators have asked of this generation's controller."""
    try:
        return Orders.from_text(folder.orders.read_text())
    except FileNotFoundError:
        return Orders()


def _serves(status: Mapping[str, Any]) -> bool:
    """Whether there is a router for gateways. status: the controller's answer."""
    routers = [one for one in status["members"] if one["role"] == Role.ROUTER]
    return any(one["ready"] and one["health"] == Health.ALIVE for one in routers)


def _when_to_end(name: str) -> tuple[int, str]:
    return ENDING.index(role_of(name)[0].value), name


STEPS: dict[str, Callable[[Step], dict[str, Any]]] = {
    each.__name__: each
    for each in (
        Step.look,
        Step.begin,
        Step.nodes,
        Step.routers,
        Step.gateways,
        Step.commit,
        Step.strays,
        Step.end,
        Step.finish,
    )
}
