"""Who is upgraded when, and who must not be: no process, no network."""

from dataclasses import replace

import pytest

from cluster.controller.state import Shape
from cluster.errors import ConfigError, ProtocolError, Unavailable
from cluster.fleet.upgrade import check_same, last_of
from cluster.fleet.versions import by_host, check_protocols, check_ready, in_order, outdated, versions
from cluster.fleet.wanted import on_fleet
from support.fleet_files import DOOR, HUB, PI, fleet_of

SHAPE = Shape(3, 2, 4, (0, 1), 4096)


@pytest.fixture
def fleet(tmp_path):
    return fleet_of(tmp_path, PI, HUB, {**DOOR, "name": "spare", "memory_bytes": "64MiB"})


@pytest.fixture
def wanted(fleet):
    return on_fleet(fleet, SHAPE, "int8")


def status_of(wanted, version="1", **changes):
    """All ready with this version. changes: of members, by name with _ for -; None has it be away."""
    members = []
    for each in wanted[1:]:
        change = changes.get(each.name.replace("-", "_"), {})
        if change is not None:
            plain = {"id": each.name, "software": version, "protocol": 1, "ready": True, "health": "alive"}
            members.append(plain | change)
    return {"software": changes.get("controller", version), "members": members}


def test_the_head_is_first_and_the_others_follow_as_the_file_has_them(fleet):
    assert [host.name for host in in_order(fleet)] == ["hub", "pi", "spare"]
    assert [host.name for host in in_order(fleet, ["spare", "hub"])] == ["hub", "spare"]


def test_a_host_that_is_not_there_is_named(fleet):
    with pytest.raises(ConfigError, match="no host 'attic'; it has hub, pi, spare"):
        in_order(fleet, ["attic"])


def test_versions_of_roles_and_hosts(wanted):
    status = status_of(wanted, pi={"software": "2"}, router_hub_0=None, controller="2")
    assert versions(status, wanted)["pi"] == "2"
    assert by_host(status, wanted) == {"hub": ["", "1", "2"], "pi": ["2"], "spare": ["1"]}


def test_members_of_a_release_that_does_not_tell_are_outdated(wanted):
    status = {"members": [{"id": "pi", "ready": True, "health": "alive"}]}
    assert versions(status, wanted)["pi"] == versions(status, wanted)["controller"] == ""
    assert len(outdated(status, wanted, "1")) == len(wanted)
    check_protocols(status, "1", 1)


def test_controller_gateways_routers_nodes_take_their_turns(wanted):
    names = [each.name for each in outdated(status_of(wanted), wanted, "2") if each.host == "hub"]
    assert names == ["controller", "gateway-hub-0", "router-hub-0", "hub"]


def test_who_runs_the_version_and_is_ready_is_left_alone(wanted):
    assert outdated(status_of(wanted, "2"), wanted, "2") == []
    status = status_of(wanted, "2", pi={"ready": False}, hub={"health": "dead"}, router_spare_0=None)
    assert [each.name for each in outdated(status, wanted, "2")] == ["router-spare-0", "pi", "hub"]


def test_a_node_that_an_upgrade_drained_before_it_was_cut_has_its_turn_again(wanted):
    status = status_of(wanted, "2", pi={"for_upgrade": True}, hub={"for_upgrade": False})
    assert [each.name for each in outdated(status, wanted, "2")] == ["pi"]


def test_one_host_at_a_time(wanted):
    elsewhere = [each for each in wanted if each.host != "hub"]
    check_ready(status_of(wanted, hub=None), elsewhere)
    for change in ({"ready": False}, {"health": "suspected"}, None):
        with pytest.raises(Unavailable, match="not ready: pi on pi;"):
            check_ready(status_of(wanted, pi=change), elsewhere)


@pytest.mark.parametrize(("protocol", "fits"), [(1, False), (2, True), (3, True), (4, True), (5, False)])
def test_a_protocol_that_no_member_may_be_far_from(wanted, protocol, fits):
    status = status_of(wanted)
    for member in status["members"]:
        member["protocol"] = 3
    if fits:
        check_protocols(status, "9.9", protocol)
        return
    with pytest.raises(ProtocolError, match=rf"9\.9 speaks protocol {protocol}, pi speaks 3; upgrade every"):
        check_protocols(status, "9.9", protocol)


def test_hosts_get_the_version_of_the_first():
    check_same("hub", "2", "")
    check_same("pi", "2", "2")
    with pytest.raises(ProtocolError, match="host pi has moemesh 1 installed, those before it run 2"):
        check_same("pi", "1", "2")


def test_what_a_command_said_last():
    assert last_of(["a\n", "\n", "b\n"]) == "a / b"
    assert last_of([f"{number}\n" for number in range(9)], 2) == "7 / 8"
    assert last_of([]) == "nothing"


def test_a_host_of_several_routers_has_them_take_turns(fleet):
    hosts = [replace(host, routers=2) if host.name == "spare" else host for host in fleet.hosts]
    wanted = on_fleet(replace(fleet, hosts=tuple(hosts)), SHAPE, "int8")
    names = [each.name for each in outdated(status_of(wanted), wanted, "2") if each.host == "spare"]
    assert names == ["gateway-spare-0", "router-spare-0", "router-spare-1", "spare"]
