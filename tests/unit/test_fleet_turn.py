"""What one host does of a change of the model: real steps over Ray and controllers that are pretended."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.controller import orders
from cluster.controller.members import Role
from cluster.controller.orders import Orders
from cluster.errors import AlreadyUp, NotUp, OutOfMemoryBudget, StartFailed, Unavailable
from cluster.fleet import actors, generations, processes, settling, starting, turn
from cluster.fleet.file import FleetFile
from cluster.fleet.folder import Folder, Record
from cluster.fleet.generations import Generation, Generations, Turn
from cluster.fleet.machine import Machine, Quiet
from cluster.fleet.prepare import controller_of, wanted_of
from cluster.fleet.processes import Mark
from cluster.fleet.serve import plan_of
from cluster.fleet.settling import Settling
from cluster.fleet.signals import Signals
from cluster.fleet.turn import STEPS, Step
from cluster.library.bundled import open_model
from cluster.types import NodeId
from support.fleet_files import HUB, PI, fleet_of

LIBRARY = open_model()
OLD = Generation(0, "", "int8", LIBRARY.name, LIBRARY.digest)
NEW = replace(OLD, number=1, digest="b" * 64)
FORTH, BACK = Turn(NEW, OLD, False), Turn(OLD, NEW, True)
ROLES = ["controller", "gateway-hub-0", "hub", "pi", "router-hub-0"]
MUCH, LITTLE = 1 << 40, 100 << 20
"""Bytes: memory for two nodes, and for the second one only without the first."""


class World:
    """Two generations on a hub and a pi. running: names by generation; done: what ended ("-") and started
    ("+"), in its order; orders: by generation; free: bytes of memory; room: whether other nodes can take a
    drained one's experts; moving: whether experts are being moved, so that nothing else can be; restarted:
    roles that Ray has started anew once; driven: generation whose driver this process is."""

    def __init__(self, fleet: FleetFile) -> None:
        self.fleet, self.free, self.room, self.moving = fleet, MUCH, True, False
        self.running: list[set[str]] = [set(ROLES), set()]
        self.done: list[str] = []
        self.restarted, self.unready, self.dead = set[str](), set[str](), set[str]()
        self.driven = 0

    def drained(self, generation: int) -> set[str]:
        return set(self.orders(generation).drained)

    def orders(self, generation: int) -> Orders:
        """As its controller keeps them."""
        file = self.folder(generation).orders
        return Orders.from_text(file.read_text()) if file.exists() else Orders()

    def order(self, orders: Orders, generation: int = 0) -> None:
        file = self.folder(generation).orders
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(orders.to_text())

    def folder(self, number: int = 0) -> Folder:
        return Folder(Path(self.fleet.head.storage) / "state", number)

    def step(self, turn: Turn, host: str = "hub") -> Step:
        return Step(self.fleet, host, self.folder(), turn, Quiet(), Signals())

    def start(self, role: str, name: str, *arguments: Any, host: str = "") -> str:
        if name not in self.running[self.driven]:
            self.running[self.driven].add(name)
            self.done.append(f"+{name}")
        return name

    def end(self, name: str, generation: int, here: bool = True) -> None:
        if name in self.running[generation]:
            self.running[generation].remove(name)
            self.done.append(f"-{name}" if here else f"-{name} elsewhere")

    def status(self, generation: int) -> dict[str, Any]:
        wanted = wanted_of(generations.of_generation(self.fleet, (OLD, NEW)[generation]), self.fleet.head)
        there = [one for one in wanted if one.name in self.running[generation] and one.role != "controller"]
        return {
            "members": [
                {
                    "id": one.name,
                    "role": Role(one.role),
                    "incarnation": 1,
                    "address": "10.0.0.9:1",
                    "ready": one.name not in self.unready,
                    "health": "dead" if one.name in self.dead else "alive",
                    "error": None,
                    "drained": one.name in self.drained(generation),
                    "for_upgrade": one.name in self.orders(generation).for_upgrade,
                    "stats": {"restarts": int(one.name in self.restarted), "resident_bytes": 1},
                }
                for one in there
            ],
            "pending": 0,
            "settled": True,
            "active": 1,
            "version": 1,
        }


class _Controller:
    """Of one generation."""

    def __init__(self, world: World, address: str) -> None:
        numbers = [generations.numbered(world.fleet, number) for number in (0, 1)]
        self._world = world
        self._generation = [controller_of(fleet) for fleet in numbers].index(address)

    def status(self) -> dict[str, Any]:
        if "controller" not in self._world.running[self._generation]:
            raise Unavailable("no controller listens")
        return self._world.status(self._generation)

    @property
    def _orders(self) -> Orders:
        return self._world.orders(self._generation)

    def drain(self, node: str, for_upgrade: bool = False, later: bool = False) -> dict[str, Any]:
        if self._world.moving and not later:
            raise Unavailable("experts are being moved")
        if not later and not (self._world.room and {"hub", "pi"} - self._orders.drained - {node}):
            raise OutOfMemoryBudget("no room")
        self._world.order(self._orders.draining(NodeId(node), for_upgrade), self._generation)
        return {"drained": True}

    def undrain(self, node: str, fill: bool = False, for_upgrade: bool = False) -> dict[str, Any]:
        if not for_upgrade or node in self._orders.for_upgrade:
            if fill and self._world.moving:
                raise Unavailable("experts are being moved")
            self._world.order(self._orders.undraining(NodeId(node)), self._generation)
        return {"drained": False, "node": node}

    def offer(self, tiers: Sequence[str]) -> None:
        self._world.order(self._orders.offering(tiers), self._generation)

    def __enter__(self) -> _Controller:
        return self

    def __exit__(self, *error: object) -> None:
        pass


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(fleet_of(tmp_path, HUB, PI))
    made.folder().write(Record("up", Mark(1, 1.0)))
    _pretend(made, monkeypatch)
    return made


def _pretend(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = processes.mark(os.getpid())
    assert ours is not None

    @contextmanager
    def driving(step: Step) -> Iterator[Machine]:
        world.driven = step._turn.to.number
        folder = world.folder()
        record = folder.read()
        assert record is not None
        yield Machine(folder, record, Quiet(), Signals())

    monkeypatch.setattr(Step, "_driving", driving)
    monkeypatch.setattr(actors, "spawn", world.start)
    monkeypatch.setattr(actors, "end", world.end)
    monkeypatch.setattr(actors, "process_id", lambda name, actor, timeout_s: os.getpid())
    monkeypatch.setattr(actors, "running", lambda: set(world.running[world.driven]))
    monkeypatch.setattr(actors, "running_of", lambda generation: set(world.running[generation]))
    monkeypatch.setattr(turn, "free_memory", lambda: world.free)
    monkeypatch.setattr(turn, "ROUTER_S", 0.0)
    for module in (turn, starting):
        monkeypatch.setattr(module, "Controller", lambda address, folder: _Controller(world, address))


def noted(world: World) -> Generations:
    found = generations.read(world.folder())
    assert found is not None
    return found


def drain(world: World, name: str, generation: int = 0) -> None:
    """As an operator does."""
    world.order(world.orders(generation).draining(NodeId(name)), generation)


def test_the_head_notes_what_is_about_to_be_and_what_operators_have_ordered(world: World) -> None:
    drain(world, "pi")
    world.order(world.orders(0).draining(NodeId("hub"), for_upgrade=True))
    world.step(FORTH).begin()
    ordered = Orders(frozenset({NodeId("pi")}))
    assert noted(world) == Generations(OLD, NEW, ordered.to_text())
    assert world.orders(1) == ordered


@pytest.mark.parametrize("now", [Generations(OLD, NEW), Generations(replace(OLD, digest="c" * 64))])
def test_of_two_changes_at_once_one_begins(world: World, now: Generations) -> None:
    generations.write(world.folder(), now)
    with pytest.raises(AlreadyUp, match="another change"):
        world.step(FORTH).begin()
    assert noted(world) == now


def test_where_memory_is_for_both_the_old_node_stays(world: World) -> None:
    world.step(FORTH).nodes()
    world.step(FORTH, "pi").nodes()
    assert world.done == ["+controller", "+hub", "+pi"]
    assert not world.drained(0) | world.drained(1)


def test_where_it_is_not_others_take_what_the_old_node_holds_before_it_ends(world: World) -> None:
    world.step(FORTH).nodes()
    world.free = LITTLE
    world.step(FORTH, "pi").nodes()
    assert world.done[2:] == ["-pi", "+pi"]
    assert world.orders(0).for_upgrade == {"pi"}
    world.step(FORTH, "pi").nodes()
    assert len(world.done) == 4, "it is done already"


def test_where_others_have_no_room_nothing_ends(world: World) -> None:
    world.step(FORTH).nodes()
    world.free, world.room = LITTLE, False
    with pytest.raises(OutOfMemoryBudget, match="no room"):
        world.step(FORTH, "pi").nodes()
    assert len(world.done) == 2
    assert not world.drained(0)


def test_what_an_operator_has_drained_stays_so_when_a_step_fails(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    drain(world, "pi")
    world.step(FORTH).nodes()
    world.free = LITTLE
    monkeypatch.setattr(Settling, "_emptied", never)
    with pytest.raises(StartFailed, match="waited"):
        world.step(FORTH, "pi").nodes()
    assert world.drained(0) == {"pi"}


@pytest.mark.parametrize("moving", [False, True])
def test_what_a_step_has_drained_itself_is_given_back_when_it_fails(
    world: World, monkeypatch: pytest.MonkeyPatch, moving: bool
) -> None:
    def fails(settling: Settling, node: str) -> bool:
        assert world.orders(0).for_upgrade == {"pi"}
        world.moving = moving
        raise StartFailed("waited")

    world.step(FORTH).nodes()
    world.free = LITTLE
    monkeypatch.setattr(Settling, "_emptied", fails)
    with pytest.raises(StartFailed, match="waited"):
        world.step(FORTH, "pi").nodes()
    assert not world.drained(0)


def never(*arguments: Any) -> None:
    raise StartFailed("waited")


def test_a_router_that_starts_anew_is_waited_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def later(seconds: float) -> None:
        world.dead.clear()

    monkeypatch.setattr(turn, "ROUTER_S", 60.0)
    monkeypatch.setattr(settling.time, "sleep", later)
    everywhere(world, FORTH, Step.nodes, Step.routers)
    world.dead.add("router-hub-0")
    world.step(FORTH).gateways()
    assert world.done[-2:] == ["-gateway-hub-0", "+gateway-hub-0"]


def test_gateways_change_over_only_to_routers_that_are_ready(world: World) -> None:
    world.step(FORTH).nodes()
    with pytest.raises(Unavailable, match=r"no router of .* is ready"):
        world.step(FORTH).gateways()
    world.step(FORTH).routers()
    world.unready.add("router-hub-0")
    with pytest.raises(Unavailable, match=r"no router of .* is ready"):
        world.step(FORTH).gateways()
    world.unready.clear()
    world.dead.add("router-hub-0")
    with pytest.raises(Unavailable, match=r"no router of .* is ready"):
        world.step(FORTH).gateways()
    assert "-gateway-hub-0" not in world.done
    world.dead.clear()
    world.step(FORTH).gateways()
    assert world.done[-2:] == ["-gateway-hub-0", "+gateway-hub-0"]


def test_where_gateways_serve_the_other_already_no_router_is_asked_for(world: World) -> None:
    world.step(BACK).gateways()
    world.unready.add("router-hub-0")
    world.step(BACK).gateways()
    assert not world.done


def everywhere(world: World, turn: Turn, *steps: Callable[[Step], Any]) -> None:
    for step in steps:
        for host in ("hub", "pi"):
            step(world.step(turn, host))


def changed(world: World, short: bool = False) -> None:
    """Forth, up to the gateways. short: the pi has no memory for two nodes."""
    world.step(FORTH).begin()
    world.step(FORTH).nodes()
    world.free = LITTLE if short else MUCH
    world.step(FORTH, "pi").nodes()
    world.free = MUCH
    everywhere(world, FORTH, Step.routers, Step.gateways)
    world.done.clear()


def test_the_other_generation_is_active_also_when_ray_has_restarted_a_role(world: World) -> None:
    changed(world)
    world.restarted.update(ROLES)
    world.step(FORTH).commit()
    record = world.folder().read()
    assert record is not None
    assert (noted(world), record.phase) == (Generations(NEW, OLD, Orders().to_text()), "up")
    assert record.controller == controller_of(generations.numbered(world.fleet, 1))
    assert not world.done


def test_a_role_that_dies_as_often_as_it_starts_is_an_error(world: World) -> None:
    changed(world)
    world.running[1].remove("router-hub-0")
    world.restarted.add("router-hub-0")
    with pytest.raises(StartFailed, match="router-hub-0"):
        world.step(FORTH).commit()
    assert (noted(world).active, noted(world).other) == (OLD, NEW)


def test_what_was_drained_for_the_others_sake_is_given_back_and_operators_keep_theirs(world: World) -> None:
    changed(world, short=True)
    drain(world, "hub")
    assert world.drained(0) == {"hub", "pi"}
    world.step(BACK).gateways()
    world.step(BACK, "pi").nodes()
    assert world.done == ["-gateway-hub-0", "+gateway-hub-0", "-pi", "+pi"]
    assert "pi" in world.drained(0), "not before every node is ready"
    everywhere(world, BACK, Step.nodes, Step.routers)
    world.step(BACK).commit()
    assert world.drained(0) == {"hub"}
    assert (noted(world).active, noted(world).other) == (OLD, NEW)


def test_a_node_that_an_operator_drains_after_it_was_drained_for_the_others_sake_stays_so(
    world: World,
) -> None:
    changed(world, short=True)
    drain(world, "pi")
    everywhere(world, BACK, Step.gateways, Step.nodes, Step.routers)
    world.step(BACK).commit()
    assert world.drained(0) == {"pi"}


def test_what_operators_order_while_the_model_is_changed_holds_for_the_new_one(
    world: World, two_tiers: None
) -> None:
    drain(world, "hub")
    changed(world)
    world.order(world.orders(0).undraining(NodeId("hub")).draining(NodeId("pi")).offering(["fast"]))
    world.step(FORTH).commit()
    assert world.orders(1) == Orders(frozenset({NodeId("pi")}), ("fast",))


@pytest.fixture
def two_tiers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orders, "TIERS", ("exact", "fast"))


def test_what_they_order_of_the_new_one_stays(world: World, two_tiers: None) -> None:
    changed(world)
    world.order(world.orders(1).offering(["fast"]).draining(NodeId("pi")), 1)
    world.step(FORTH).commit()
    assert world.orders(1) == Orders(frozenset({NodeId("pi")}), ("fast",))


def test_orders_that_come_while_it_is_being_committed_are_not_lost(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plan(*arguments: Any) -> Any:
        drain(world, "pi")
        return plan_of(*arguments)

    changed(world)
    monkeypatch.setattr(turn, "plan_of", plan)
    world.step(FORTH).commit()
    assert world.drained(1) == {"pi"}


def test_a_commit_that_was_cut_does_not_undo_what_was_ordered_since(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed(world)
    drain(world, "pi")
    with monkeypatch.context() as patch:
        patch.setattr(turn, "plan_of", never)
        with pytest.raises(StartFailed):
            world.step(FORTH).commit()
    assert world.drained(1) == {"pi"}
    world.order(Orders(), 0)
    world.step(FORTH).commit()
    assert not world.drained(1)


def test_on_the_way_back_nobody_follows_the_new_one(world: World) -> None:
    changed(world)
    drain(world, "pi", 1)
    everywhere(world, BACK, Step.gateways, Step.nodes, Step.routers)
    world.step(BACK).commit()
    assert not world.drained(0)


def test_a_node_that_was_emptied_for_one_model_and_drained_in_the_other_is_the_operators(
    world: World,
) -> None:
    world.order(Orders().draining(NodeId("pi"), for_upgrade=True), 1)
    generations.write(world.folder(), Generations(OLD, NEW, Orders().to_text()))
    world.running[1] |= set(ROLES)
    drain(world, "pi")
    world.step(FORTH).commit()
    assert world.orders(1) == Orders(frozenset({NodeId("pi")}))


@pytest.mark.parametrize("moving", [False, True])
def test_what_cannot_be_drained_any_more_is_told_and_no_failure(world: World, moving: bool) -> None:
    changed(world)
    drain(world, "pi")
    world.room, world.moving = False, moving
    world.step(FORTH).commit()
    assert (noted(world).active, noted(world).other) == (NEW, OLD)
    assert world.drained(1) == ({"pi"} if moving else set())


def test_a_node_that_operators_had_drained_and_have_no_more_gets_experts_when_it_can(world: World) -> None:
    drain(world, "pi")
    changed(world)
    world.order(Orders(), 0)
    world.moving = True
    world.step(FORTH).commit()
    assert not world.drained(1)


def test_nothing_of_the_old_generation_is_left_also_if_the_file_has_changed(world: World) -> None:
    changed(world)
    world.running[0] |= {"router-hub-1", "gateway-gone-0"}
    world.running[0] |= {"attic"}
    world.step(FORTH).commit()
    world.step(FORTH).strays()
    assert world.done == ["-gateway-gone-0 elsewhere", "-router-hub-1", "-attic elsewhere"]
    everywhere(world, FORTH, Step.end)
    assert world.done[3:] == ["-router-hub-0", "-hub", "-pi"]
    world.folder(0).epoch.write_text("3")
    world.step(FORTH).finish()
    assert world.done[6:] == ["-controller"]
    assert not world.running[0]
    assert world.running[1] == set(ROLES)
    assert not world.folder(0).epoch.exists()
    assert noted(world) == Generations(NEW)


@pytest.mark.parametrize("name", [name for name in STEPS if name not in ("look", "begin")])
def test_ray_is_not_imported_before_its_environment_is_set(
    world: World, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def driving(step: Step) -> Iterator[Machine]:
        raise NotUp("the environment is set here")
        yield

    monkeypatch.setattr(Step, "_driving", driving)
    monkeypatch.setitem(sys.modules, "cluster.fleet.actors", None)
    monkeypatch.delattr("cluster.fleet.actors")
    with pytest.raises(NotUp):  # no ImportError
        STEPS[name](world.step(FORTH))


def test_nor_with_the_module() -> None:
    command = "import sys, cluster.fleet.turn; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], check=False).returncode == 0
