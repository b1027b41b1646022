"""What a fleet's machines are told and what is wanted of them: no process, no network."""

import io
import os
import sys
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
import yaml

from cluster.config import ClusterConfig, WireSecurity
from cluster.controller.state import Shape
from cluster.errors import ConfigError, HostFailed, OutOfMemoryBudget, PortInUse, ProtocolError, StartFailed
from cluster.fleet import shell
from cluster.fleet.file import Redis, load
from cluster.fleet.folder import Folder
from cluster.fleet.handover import copy_secrets, take_secrets
from cluster.fleet.join import join, own_record, ray_place
from cluster.fleet.lines import LineProgress, Listener
from cluster.fleet.machine import Quiet
from cluster.fleet.memory import free_memory
from cluster.fleet.muster import check_probes, new_secrets, stale_hosts
from cluster.fleet.raynode import LABEL, RayNode, RayPlace, trim
from cluster.fleet.roles import process
from cluster.fleet.roles.cores import give_way
from cluster.fleet.room import OVERHEAD_BYTES
from cluster.fleet.serve import await_hosts
from cluster.fleet.signals import Signals
from cluster.fleet.starting import describe
from cluster.fleet.store import namespace, store_of
from cluster.fleet.wanted import NICE, Plan, count, on_fleet, on_one_machine

SHAPE = Shape(2, 2, 4, (0, 1), 4096)


@pytest.fixture
def fleet(tmp_path):
    file = tmp_path / "fleet.yaml"
    values = {
        "name": "yard",
        "model": "library",
        "ssh": {"user": "pi"},
        "hosts": [
            {"name": "hub", "address": "10.0.0.1", "role": "hub", "memory_bytes": 0, "cores": 4,
             "routers": 2},
            {"name": "one", "address": "10.0.0.2", "role": "edge", "memory_bytes": "1GiB", "cores": 2,
             "labels": {"site": "attic"}},
            {"name": "two", "address": "10.0.0.3", "role": "edge", "memory_bytes": "2GiB", "cores": 4,
             "storage": "/mnt/two", "ports": {"node": 9000}},
        ],
    }  # fmt: skip
    file.write_text(yaml.safe_dump(values))
    return load(file)


def test_every_process_is_placed_on_its_host(fleet):
    wanted = on_fleet(fleet, SHAPE, "int8")
    assert [(each.role, each.name, each.host) for each in wanted] == [
        ("controller", "controller", "hub"),
        ("node", "one", "one"),
        ("node", "two", "two"),
        ("router", "router-hub-0", "hub"),
        ("router", "router-hub-1", "hub"),
        ("gateway", "gateway-hub-0", "hub"),
    ]
    assert count(wanted) == {"controller": 1, "node": 2, "router": 2, "gateway": 1}


def test_what_computes_gives_way_where_all_share_the_cores(fleet):
    plan = Plan(ClusterConfig(nodes=2), "", "model", "int8", SHAPE)
    wanted = on_one_machine(plan, "127.0.0.1", 1, "logs", "epoch")
    niceness = {each.name: each.arguments[0].nice for each in wanted if each.role != "controller"}
    assert niceness == {"node-0": NICE, "node-1": NICE, "router-0": NICE, "gateway": 0}
    apart = on_fleet(fleet, SHAPE, "int8")
    assert {each.arguments[0].nice for each in apart if each.role != "controller"} == {None}


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere niceness is of the whole process")
def test_a_thread_that_gives_way_takes_along_those_that_it_starts():
    def own() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    def begin() -> None:
        give_way(1)
        child = threading.Thread(target=lambda: found.append(own()))
        child.start()
        child.join()
        found.append(own())

    before, found = own(), []
    thread = threading.Thread(target=begin)
    thread.start()
    thread.join()
    assert found == [min(19, before + 1)] * 2
    assert own() == before


def test_a_start_is_counted_before_its_log_tells_of_it(tmp_path, monkeypatch):
    def log_to_file(logs, name, kind):
        counted.append((logs / f"{name}.starts").read_text())

    counted = []
    monkeypatch.setattr(process, "log_to_file", log_to_file)
    place = process.Place("node-0", "127.0.0.1:1", "", "int8", tmp_path / "cleared")
    assert [process.begin(place), process.begin(place)] == [0, 1]
    assert counted == [f"{os.getpid()}\n", 2 * f"{os.getpid()}\n"]


def test_a_process_has_what_its_host_says(fleet):
    by_name = {each.name: each.arguments for each in on_fleet(fleet, SHAPE, "int8")}
    place, config = by_name["two"]
    assert (place.host, place.port, config.host) == ("10.0.0.3", 9000, "10.0.0.3")
    assert (place.library, place.logs) == ("/mnt/two/library", "/mnt/two/state/logs")
    assert (config.memory_bytes, config.threads) == (2 << 30, 4)
    routers = [by_name[f"router-hub-{number}"][0] for number in range(2)]
    assert routers[1].port == routers[0].port + 1
    assert {place.controller for place, *_ in (by_name["one"], by_name["gateway-hub-0"])} == {"10.0.0.1:8470"}


def test_ray_is_told_address_ports_and_labels(fleet):
    head, edge, _ = fleet.hosts
    place = ray_place(fleet, edge, str)
    words = place.arguments()
    assert words[:4] == ["--address", "10.0.0.1:6379", "--node-ip-address", "10.0.0.2"]
    assert words[-2:] == ["--labels", f"site=attic,{LABEL}=one"]
    assert "--node-manager-port" in words
    ports = list(place.ports.values())
    assert len(set(ports)) == len(ports)
    assert ray_place(fleet, head, str).arguments()[:3] == ["--head", "--port", "6379"]


def test_the_head_that_ray_up_starts_has_a_monitor(fleet, tmp_path):
    head, edge = fleet.hosts[0], fleet.hosts[1]
    arguments = ray_place(fleet, head, str, "boot.yaml").arguments()
    assert arguments[arguments.index("--autoscaling-config") + 1] == "boot.yaml"
    for config in ("boot.yaml", None):
        told = SimpleNamespace(autoscaling_config=config)
        trim(told, True)
        assert told.no_monitor is not bool(config)
    with pytest.raises(ConfigError, match="is for the head"):
        join(fleet, edge, Folder(tmp_path), Quiet(), Signals(), "boot.yaml")


def test_alone_ray_gets_no_ports_and_no_labels():
    words = RayPlace().arguments()
    assert words == [
        "--head",
        "--port",
        "0",
        "--include-dashboard",
        "false",
        "--node-ip-address",
        "127.0.0.1",
    ]


def test_a_machine_finds_its_record_by_address(fleet):
    assert own_record(fleet, "", {"10.0.0.2"}.__contains__).name == "one"
    assert own_record(fleet, "two", {"10.0.0.3"}.__contains__).name == "two"


@pytest.mark.parametrize(
    ("name", "ours", "words"),
    [
        ("", (), "no host of the fleet"),
        ("", ("10.0.0.1", "10.0.0.2"), "--host NAME"),
        ("three", ("10.0.0.1",), "has no host 'three'; it has hub, one, two"),
        ("one", ("10.0.0.1",), "10.0.0.2 of host one is not this machine's"),
    ],
)
def test_a_machine_that_is_not_in_the_file_is_told(fleet, name, ours, words):
    with pytest.raises(ConfigError, match=words):
        own_record(fleet, name, ours.__contains__)


def probe(**changes):
    return {"version": "1", "numerics": 1, "free_bytes": 8 << 30, "up": False, "kept": False, **changes}


def test_hosts_that_fit_pass(fleet):
    check_probes(fleet, {host.name: probe() for host in fleet.hosts})


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"version": "2"}, ProtocolError),
        ({"numerics": 2}, ProtocolError),
        ({"free_bytes": (2 << 30) + OVERHEAD_BYTES - 1}, OutOfMemoryBudget),
    ],
)
def test_a_host_that_does_not_fit_is_named(fleet, changes, error):
    probes = {host.name: probe() for host in fleet.hosts} | {"two": probe(**changes)}
    with pytest.raises(error, match="host two has"):
        check_probes(fleet, probes)


def test_a_host_that_runs_needs_no_memory_again(fleet):
    check_probes(fleet, {host.name: probe(up=True, free_bytes=0) for host in fleet.hosts})


@pytest.mark.parametrize(
    ("head", "others", "stale"),
    [
        ({"up": True}, {"up": True}, []),
        ({"up": False}, {"up": False}, []),
        ({"up": False}, {"up": True}, ["one", "two"]),
        ({"up": False, "kept": True}, {"up": True}, []),
    ],
)
def test_hosts_end_if_their_head_will_not_know_them_again(fleet, head, others, stale):
    probes = {host.name: probe(**(head if host.head else others)) for host in fleet.hosts}
    assert [host.name for host in stale_hosts(fleet, probes)] == stale


def test_roles_wait_until_all_machines_have_joined():
    seen = iter([{"hub"}, {"hub"}, {"hub", "one"}, {"hub", "one"}])
    said = []
    await_hosts(["hub", "one"], lambda: next(seen), _Recorder(said), lambda: None)
    assert said == ["waiting for one to join"]


def test_machines_that_do_not_join_are_named():
    with pytest.raises(StartFailed, match="one, two did not join within 0 s"):
        await_hosts(["hub", "one", "two"], lambda: {"hub"}, Quiet(), lambda: None, limit_s=0.0)


def test_ssh_never_asks_and_takes_the_hosts_own_options_first(fleet):
    host = replace(fleet.hosts[0], ssh=replace(fleet.ssh, key="/k", options=("ConnectTimeout=1",), port=2222))
    words = shell.arguments(host)
    assert words[:4] == ["ssh", "-T", "-p", "2222"]
    assert words.index("ConnectTimeout=1") < words.index("ConnectTimeout=10")
    assert "BatchMode=yes" in words
    assert words[-2:] == ["--", "pi@10.0.0.1"]


@pytest.mark.parametrize(
    ("code", "said", "words"),
    [
        (255, "pi@10.0.0.1: Permission denied (publickey).", "refuses the key"),
        (255, "ssh: connect to host 10.0.0.1 port 22: No route to host", "no way leads to it"),
        (255, "ssh: connect to host 10.0.0.1 port 22: Connection refused", "runs no sshd"),
        (255, "Host key verification failed.", "ssh-keygen -R"),
        (127, "sh: 1: /opt/moemesh/bin/moemesh: not found", "no moemesh in /opt/moemesh"),
        (1, "Traceback\nValueError: x\n", "ValueError: x"),
        (3, "", "exit code 3"),
    ],
)
def test_what_ssh_says_is_one_line_that_names_the_host(fleet, code, said, words):
    line = shell.problem(fleet.hosts[0], code, said)
    assert line.startswith("host hub (10.0.0.1)")
    assert words in line
    assert "\n" not in line


def test_what_is_said_on_a_machine_is_heard_elsewhere():
    heard, out = [], io.StringIO()
    told = LineProgress(out)
    told.phase("starting")
    told.phase("starting")
    told.done("started")
    told.answer({"ray": "a:1"})
    listener = Listener(_Recorder(heard), "host one")
    for line in ["Welcome to Debian\n", "7\n", *out.getvalue().splitlines()]:
        listener.hear(line)
    assert heard == ["host one: starting", "host one: started"]
    assert listener.answer == {"ray": "a:1"}


def test_an_error_keeps_its_type_and_gets_the_hosts_name():
    out = io.StringIO()
    LineProgress(out).error(PortInUse("port 1 is taken"))
    with pytest.raises(PortInUse, match="host one: port 1 is taken"):
        Listener(Quiet(), "host one").hear(out.getvalue())


def test_a_listener_that_has_gone_stops_nobody():
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    LineProgress(Closed()).done("started")


def test_secrets_travel(tmp_path):
    import json

    given = new_secrets()
    folder = Folder(tmp_path / "state")
    take_secrets(folder, json.dumps(given))
    assert folder.token.read_text() == given["token"]
    assert folder.cluster_key().hex() == given["key"]
    with pytest.raises(ConfigError, match="no token and key"):
        take_secrets(folder, "")


def test_secrets_of_a_folder_are_taken_if_they_are_secret(tmp_path):
    folder, given = Folder(tmp_path / "state"), Folder(tmp_path / "given")
    with pytest.raises(ConfigError, match=r"has no token and cluster\.key"):
        copy_secrets(folder, given.path)
    given.write_secrets()
    copy_secrets(folder, given.path)
    assert folder.token.read_text() == given.token.read_text()
    assert folder.cluster_key() == given.cluster_key()
    given.key.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        copy_secrets(folder, given.path)


def test_what_ray_kept_goes_with_its_token(tmp_path):
    folder = Folder(tmp_path / "state")
    folder.put_secrets("a", b"key")
    folder.ray.mkdir()
    folder.put_secrets("a", b"key")
    assert folder.ray.exists()
    folder.put_secrets("b", b"key")
    assert not folder.ray.exists()


def test_the_head_keeps_what_ray_knows_on_its_disk(fleet, tmp_path):
    folder = Folder(tmp_path)
    assert store_of(fleet, folder).variables == {
        "RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": str(folder.ray)
    }  # fmt: skip
    node = RayNode(
        folder, WireSecurity.auto, ray_place(fleet, fleet.head, str, store=store_of(fleet, folder))
    )
    node.temp.rmdir()
    assert node.environment["RAY_gcs_storage"] == "rocksdb"


def test_the_head_keeps_what_ray_knows_in_redis(fleet, tmp_path):
    password = tmp_path / "password"
    redis = Redis("db:6379", "fleet", str(password))
    fleet, folder = replace(fleet, redis=redis), Folder(tmp_path / "state")
    folder.put_secrets("token", b"key")
    with pytest.raises(ConfigError, match="cannot be read"):
        store_of(fleet, folder)
    password.write_text("secret\n")
    store = store_of(fleet, folder)
    assert store.variables["RAY_REDIS_ADDRESS"] == "db:6379"
    kept = store.variables["RAY_external_storage_namespace"]
    assert kept == namespace("yard", "token") != namespace("yard", "other")
    assert list(store.arguments) == ["--redis-username", "fleet", "--redis-password", "secret"]


def test_what_says_that_a_cluster_runs_can_go_alone(tmp_path):
    folder = Folder(tmp_path / "state")
    folder.write_secrets()
    folder.forget(for_good=False)
    assert folder.token.exists()
    folder.forget()
    assert not folder.token.exists()


def test_the_tightest_cgroup_counts(tmp_path):
    groups, own = tmp_path / "cgroup", tmp_path / "own"
    for folder, limit, used in (("a", "5000", 1000), ("a/b", "max", 10)):
        (groups / folder).mkdir(parents=True)
        (groups / folder / "memory.max").write_text(f"{limit}\n")
        (groups / folder / "memory.current").write_text(f"{used}\n")
    own.write_text("0::/a/b\n")
    assert free_memory(groups, own) == 4000
    assert free_memory(groups, tmp_path / "none") > 4000


def test_gateways_are_counted_where_there_are_several():
    members = [{"role": "gateway", "ready": True, "stats": {}}]
    wanted = {"node": 1, "router": 1, "gateway": 2}
    assert describe(members, wanted).endswith("gateways 1/2")
    assert describe(members, wanted | {"gateway": 1}).endswith("gateway ready")


class _Recorder:
    def __init__(self, heard):
        self.phase = self.done = heard.append


def test_an_unreachable_host_has_an_error_of_its_own():
    assert HostFailed.code == "UNAVAILABLE"
