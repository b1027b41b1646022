"""The controller's decisions, without sockets and with a clock of the test's own."""

import dataclasses

import msgpack
import numpy as np
import pytest

from cluster.balance.load import LoadStats
from cluster.balance.placement import PlacementTable, round_robin
from cluster.controller import answers, syncing
from cluster.controller.members import DEAD_AFTER_S, NO_TABLE, SUSPECTED_AFTER_S, Health, Member, Role, health
from cluster.controller.state import ControllerState, Shape, active_version, load_of, offer, stop
from cluster.errors import ProtocolError
from cluster.types import NodeId

SHAPE = Shape(nodes=3, layers=4, experts=8, sparse=(0, 1, 3))


def member(name="node-0", role=Role.NODE, incarnation=1, now=0.0, **changes):
    fields = {"address": f"127.0.0.1:{1000 + incarnation}", "table": NO_TABLE, "ready": False}
    return Member(role=role, id=name, incarnation=incarnation, error=None, last_seen=now, **fields | changes)


def synced(state, *members):
    for one in members:
        state = syncing.sync(state, one)
    return state


def three_nodes(**changes):
    return [member(f"node-{i}", **changes) for i in range(3)]


@pytest.fixture
def empty():
    return ControllerState(epoch=5, shape=SHAPE)


@pytest.fixture
def full(empty):
    """Three nodes have registered, so there is a table; nobody has loaded it."""
    return synced(empty, *three_nodes())


def test_the_table_is_made_when_the_last_expected_node_registers(empty):
    nodes = three_nodes()
    two = synced(empty, *nodes[:2])
    assert two.table is None
    assert answers.view(two, "node-0", 0.0)["table"] is None

    full = synced(two, nodes[2])
    assert full.table == round_robin(4, 8, [NodeId(n.id) for n in nodes], 5, 1, sparse=(0, 1, 3))


def test_nodes_are_dealt_in_natural_order_whoever_comes_first(empty):
    shape = Shape(nodes=11, layers=1, experts=11, sparse=(0,))
    state = ControllerState(epoch=1, shape=shape)
    state = synced(state, *(member(f"node-{i}") for i in reversed(range(11))))
    assert state.table.nodes == tuple(f"node-{i}" for i in range(11))


def test_the_table_is_active_once_every_node_has_loaded_it(full):
    loaded = (full.table.epoch, full.table.version)
    state = synced(full, *three_nodes(table=loaded)[:2])
    assert active_version(state) == 0
    state = synced(state, member("node-2", table=loaded))
    assert active_version(state) == full.table.version


def test_a_version_of_another_epoch_does_not_count_as_loaded(full):
    state = synced(full, *three_nodes(table=(4, full.table.version)))
    assert active_version(state) == 0


def test_a_restarted_node_keeps_its_place_and_the_table_waits_for_it(full):
    loaded = (full.table.epoch, full.table.version)
    state = synced(full, *three_nodes(table=loaded))

    state = synced(state, member("node-1", incarnation=2))
    assert state.table == full.table
    assert active_version(state) == 0
    answer = answers.view(state, "node-1", 0.0)
    assert PlacementTable.from_wire(answer["table"]).experts_of(NodeId("node-1"))
    assert answer["nodes"]["node-1"]["address"] == "127.0.0.1:1002"

    state = synced(state, member("node-1", incarnation=2, table=loaded))
    assert active_version(state) == full.table.version


def test_a_late_message_of_an_older_incarnation_changes_nothing(full):
    state = synced(full, member("node-1", incarnation=2))
    assert synced(state, member("node-1", incarnation=1, table=(5, 1))) == state


def test_only_a_newer_table_is_adopted(full):
    old = full.table
    for epoch, version in ((5, 1), (5, 0), (4, 9)):
        assert offer(full, dataclasses.replace(old, epoch=epoch, version=version)).table is old
    for epoch, version in ((5, 2), (6, 1)):
        new = dataclasses.replace(old, epoch=epoch, version=version)
        assert offer(full, new).table is new


def test_a_member_that_has_the_table_is_not_sent_it_again(full):
    loaded = (full.table.epoch, full.table.version)
    state = synced(full, member("node-0", table=loaded))
    assert answers.view(state, "node-0", 0.0)["table"] is None
    assert answers.view(state, "node-1", 0.0)["table"] == full.table.to_wire()


@pytest.mark.parametrize(
    ("silence", "expected"),
    [
        (0.0, Health.ALIVE),
        (SUSPECTED_AFTER_S, Health.ALIVE),
        (SUSPECTED_AFTER_S + 0.01, Health.SUSPECTED),
        (DEAD_AFTER_S, Health.SUSPECTED),
        (DEAD_AFTER_S + 0.01, Health.DEAD),
    ],
)
def test_health_follows_silence(silence, expected):
    assert health(member(now=100.0), 100.0 + silence) is expected


def test_a_silent_node_is_not_alive_and_comes_back_with_its_next_sync(full):
    later = SUSPECTED_AFTER_S + 1.0
    assert not answers.view(full, "node-1", later)["nodes"]["node-0"]["alive"]
    state = synced(full, member("node-0", now=later))
    assert answers.view(state, "node-1", later)["nodes"]["node-0"]["alive"]


def test_a_silent_router_is_not_ready(empty):
    state = synced(empty, member("router-0", Role.ROUTER, ready=True))
    assert answers.view(state, "gateway", 1.0)["routers"]["router-0"]["ready"]
    late = [answers.view(state, "gateway", at)["routers"]["router-0"]["late"] for at in (1.0, 5.0, 20.0)]
    assert late == [False, True, False]
    assert not answers.view(state, "gateway", DEAD_AFTER_S)["routers"]["router-0"]["ready"]


def test_a_new_controller_deals_the_same_experts_at_a_higher_epoch_and_version(full):
    loaded = (full.table.epoch, full.table.version)
    again = ControllerState(epoch=6, shape=SHAPE)
    assert synced(again, *three_nodes(table=loaded)).table is None  # they tell more with their next sync
    again = synced(again, *reversed(three_nodes(table=loaded, known=full.table)))
    assert (again.table.epoch, again.table.version) == (6, full.table.version + 1)
    assert again.table.replicas == full.table.replicas
    assert again.table.nodes == full.table.nodes


def test_a_new_controller_leaves_moved_experts_where_they_are(full):
    moved = dataclasses.replace(full.table, version=5, replicas=with_a_copy(full.table.replicas))
    nodes = [
        member("node-0", table=(5, 5), known=moved),
        member("node-1", table=(5, 4), known=full.table),
        member("node-2"),  # it has restarted, too
    ]
    again = synced(ControllerState(epoch=6, shape=SHAPE), *nodes)
    assert again.table == dataclasses.replace(moved, epoch=6, version=6)


@pytest.mark.parametrize("changes", [{"nodes": ("node-0", "node-1", "node-9")}, {"replicas": ()}])
def test_a_table_that_does_not_fit_is_not_taken_over(full, changes):
    other = dataclasses.replace(full.table, **changes)
    again = synced(ControllerState(epoch=6, shape=SHAPE), *three_nodes(table=(5, 1), known=other))
    assert again.table.replicas == full.table.replicas


def with_a_copy(replicas):
    """Expert 0 of layer 0 on one node more."""
    return (((0, 1), *replicas[0][1:]), *replicas[1:])


def test_two_roles_cannot_share_a_name(full):
    with pytest.raises(ProtocolError, match="another id"):
        syncing.sync(full, member("node-0", Role.ROUTER))


def test_a_leaving_member_is_forgotten(full):
    state = synced(full, member("node-0", leaving=True))
    assert "node-0" not in state.members
    assert state.table == full.table
    assert active_version(state) == 0


def test_stop_is_told_in_every_answer(full):
    assert answers.view(full, "node-0", 0.0)["stop"] is False
    assert answers.view(stop(full), "node-0", 0.0)["stop"] is True


def test_sync_headers_survive_the_wire():
    header = {
        "role": "node",
        "id": "node-0",
        "incarnation": 7,
        "address": "127.0.0.1:9",
        "epoch": 5,
        "table": 3,
        "ready": True,
        "error": ["CorruptBlob", "blob 12 is broken"],
        "stats": {"resident_bytes": 12},
    }
    one = Member.from_wire(msgpack.unpackb(msgpack.packb(header)), now=4.0)
    assert one.table == (5, 3)
    assert one.error == ("CorruptBlob", "blob 12 is broken")
    assert one.last_seen == 4.0
    assert (one.software, one.protocol) == ("", 1)
    told = Member.from_wire(header | {"software": "2.0", "protocol": 3}, now=4.0)
    assert (told.software, told.protocol) == ("2.0", 3)


@pytest.mark.parametrize("changes", [{"role": "king"}, {"incarnation": None}, {"error": []}, {"stats": 3}])
def test_a_broken_sync_is_a_protocol_error(changes):
    header = {"role": "node", "id": "n", "incarnation": 1, "address": "", "epoch": 0, "table": 0}
    header |= {"ready": False, "error": None, "stats": {}}
    with pytest.raises(ProtocolError, match="broken SYNC"):
        Member.from_wire(header | changes, 0.0)


def test_status_lists_everybody_by_role_and_name(full):
    state = synced(full, member("gateway", Role.GATEWAY), member("router-0", Role.ROUTER, ready=True))
    answer = msgpack.unpackb(msgpack.packb(answers.status(state, 0.0)))
    assert [m["id"] for m in answer["members"]] == ["node-0", "node-1", "node-2", "router-0", "gateway"]
    assert [m["experts"] for m in answer["members"]] == [8, 8, 8, 0, 0]
    assert answer["active"] == 0
    assert answer["version"] == 1


def stats_of(rows, steps=2.0, half_life=256.0):
    return LoadStats(
        half_life, steps, 4.0 * steps, 4.0, np.full((4, 8), rows * steps), np.full(4, 8.0 * steps)
    )


def test_loads_of_all_routers_are_one(full):
    assert load_of(full) is None
    state = synced(full, member("router-0", Role.ROUTER))
    assert load_of(state) is None
    state = synced(state, member("router-1", Role.ROUTER, load=stats_of(3.0)))
    assert (load_of(state).load == 3.0).all()
    state = synced(state, member("router-0", Role.ROUTER, load=stats_of(6.0, steps=1.0)))
    assert (load_of(state).load == 4.0).all()


def test_a_load_survives_the_wire():
    who = {"role": "router", "id": "router-0", "incarnation": 7, "address": "", "epoch": 0, "table": 0}
    header = who | {"ready": True, "error": None, "stats": {}, "load": stats_of(3.0).to_wire()}
    found = Member.from_wire(msgpack.unpackb(msgpack.packb(header)), 1.0)
    assert (found.load.load == 3.0).all()
    with pytest.raises(ProtocolError):
        Member.from_wire(header | {"load": {"steps": 1}}, 1.0)
