"""The controller and roles that follow it, over real sockets; the roles hold no model."""

import threading
import time

import pytest

from cluster.controller.members import Role
from cluster.controller.service import ControllerService
from cluster.controller.state import Shape
from cluster.dispatch.client import ControlClient
from cluster.dispatch.handshake import Identity
from cluster.dispatch.kinds import Kind
from cluster.errors import CorruptBlob, ProtocolError
from cluster.fleet import control
from cluster.fleet.control import ControlledRole
from cluster.types import ExpertId

SHAPE = Shape(nodes=2, layers=2, experts=4, sparse=(0, 1))


class FakeNode(ControlledRole):
    """Loads nothing, takes a table when it is told to, remembers what it was told."""

    role = Role.NODE

    def __init__(self, name, controller, allowed=None, failure=None):
        self.allowed = allowed or threading.Event()
        if allowed is None:
            self.allowed.set()
        self.failure = failure
        self.experts = []
        self.closed = False
        self.loaded = False
        super().__init__(name, controller)

    def build(self):
        self.address = f"127.0.0.1:{hash(self.name) % 50000 + 1024}"

    def apply(self, view):
        if view.table is None:
            return control.NO_TABLE
        assert self.allowed.wait(20)
        if self.failure:
            raise self.failure
        self.experts = view.table.experts_of(self.name)
        self.loaded = True
        return view.table.epoch, view.table.version

    @property
    def ready(self):
        return self.loaded

    def stats(self):
        return {"resident_bytes": 10 * len(self.experts)}

    def close(self):
        self.closed = True


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
    monkeypatch.setattr(control, "SYNC_STARTING_S", 0.01)
    monkeypatch.setattr(control, "SYNC_PERIOD_S", 0.02)


@pytest.fixture
def controller():
    service = ControllerService(SHAPE, epoch=3)
    service.address = service.start()
    yield service
    service.shutdown()


@pytest.fixture
def ask(controller):
    with client_of(controller.address) as client:
        yield lambda kind=Kind.STATUS, header=None: client.call(kind, header or {}).header


@pytest.fixture
def roles():
    made = []
    yield made
    for role in made:
        role.shutdown()


def client_of(address):
    return ControlClient(address, identity=Identity("tool", "test"))


def until(condition, timeout_s=20.0):
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, "what was waited for did not happen"
        time.sleep(0.005)
    return value


def members(answer):
    return {member["id"]: member for member in answer["members"]}


def test_two_nodes_get_their_experts_and_the_table_becomes_active(controller, ask, roles):
    roles += [FakeNode(f"node-{i}", controller.address) for i in range(2)]
    until(lambda: ask()["active"] == 1)

    assert sorted(e for role in roles for e in role.experts) == [
        ExpertId(layer, index) for layer in range(2) for index in range(4)
    ]
    answer = until(lambda: (a := ask()) and all(m["ready"] for m in a["members"]) and a)
    assert members(answer)["node-0"]["experts"] == 4
    assert until(lambda: members(ask())["node-0"]["stats"] == {"resident_bytes": 40})


def test_a_role_whose_counts_fail_goes_on_syncing(controller, ask, roles, caplog):
    node = FakeNode("node-0", controller.address)
    roles += [node, FakeNode("node-1", controller.address)]
    until(lambda: ask()["active"] == 1)
    until(lambda: members(ask())["node-0"]["stats"])

    node.stats = node.load = lambda: 1 // 0
    until(lambda: members(ask())["node-0"]["stats"] == {} and set(node._failing) == {"stats", "load"})
    node.stats, node.load = lambda: {"resident_bytes": 7}, lambda: None
    until(lambda: members(ask())["node-0"]["stats"] == {"resident_bytes": 7})

    assert members(ask())["node-0"]["health"] == "alive"
    said = [record.getMessage() for record in caplog.records if record.exc_info]
    assert sorted(line.split(":")[1].split()[0] for line in said) == ["load", "stats"], "once each"


def test_a_sync_that_fails_is_tried_again(controller, ask, roles, caplog, monkeypatch):
    node = FakeNode("node-0", controller.address)
    roles.append(node)
    until(lambda: "node-0" in members(ask()))
    report, failed = node._report, threading.Event()

    def fails():
        failed.set()
        raise LookupError("a bug")

    monkeypatch.setattr(node, "_report", fails)
    assert failed.wait(20)
    monkeypatch.setattr(node, "_report", report)
    node.stats = lambda: {"resident_bytes": 1}
    until(lambda: members(ask())["node-0"]["stats"] == {"resident_bytes": 1})
    assert "a bug" in caplog.text


def test_nothing_is_active_while_a_node_still_loads(controller, ask, roles):
    gate = threading.Event()
    roles += [FakeNode("node-0", controller.address), FakeNode("node-1", controller.address, allowed=gate)]
    until(lambda: members(ask()).get("node-0", {}).get("ready"))
    assert ask()["active"] == 0
    gate.set()
    until(lambda: ask()["active"] == 1)


def test_a_restarted_node_is_given_its_experts_again(controller, ask, roles):
    roles += [FakeNode(f"node-{i}", controller.address) for i in range(2)]
    until(lambda: ask()["active"] == 1)
    held = roles[1].experts

    gate = threading.Event()
    reborn = FakeNode("node-1", controller.address, allowed=gate)
    reborn.incarnation = roles[1].incarnation + 1
    roles.append(reborn)
    until(lambda: ask()["active"] == 0)
    gate.set()
    until(lambda: ask()["active"] == 1)
    assert reborn.experts == held


def test_an_error_of_a_role_is_reported_by_its_name(controller, ask, roles):
    roles += [
        FakeNode("node-0", controller.address),
        FakeNode("node-1", controller.address, failure=CorruptBlob("blob 12 is broken")),
    ]
    member = until(lambda: (m := members(ask()).get("node-1")) and m["error"] and m)
    assert member["error"] == ["CorruptBlob", "blob 12 is broken"]
    assert not member["ready"]


def test_nodes_come_back_to_a_new_controller_at_the_same_place(controller, roles):
    roles += [FakeNode(f"node-{i}", controller.address) for i in range(2)]
    with client_of(controller.address) as client:
        until(lambda: client.call(Kind.STATUS, {}).header["active"] == 1)
    held = [role.experts for role in roles]
    port = int(controller.address.rpartition(":")[2])
    controller.shutdown()

    again = ControllerService(SHAPE, epoch=4, port=port)
    address = again.start()
    try:
        with client_of(address) as client:
            answer = until(lambda: (a := client.call(Kind.STATUS, {}).header)["active"] and a)
        assert (answer["epoch"], answer["active"]) == (4, 2)
        assert [role.experts for role in roles] == held
    finally:
        again.shutdown()


def test_shutdown_reaches_every_role_and_they_say_goodbye(controller, ask, roles):
    roles += [FakeNode(f"node-{i}", controller.address) for i in range(2)]
    until(lambda: ask()["active"] == 1)
    ask(Kind.SHUTDOWN)
    until(lambda: ask()["members"] == [])
    until(lambda: all(role.closed for role in roles))


def test_a_broken_sync_is_answered_with_an_error_and_the_controller_lives_on(ask):
    with pytest.raises(ProtocolError, match="broken SYNC"):
        ask(Kind.SYNC, {"role": "king"})
    with pytest.raises(ProtocolError, match="does not answer EVENTS"):
        ask(Kind.EVENTS)
    assert ask()["active"] == 0
