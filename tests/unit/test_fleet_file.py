"""A fleet file becomes what it says, and an error names the key and the line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from cluster.config import Rebalance, TlsFiles
from cluster.errors import ConfigError
from cluster.fleet.file import FleetFile, Host, HostRole, Ssh, load
from cluster.sizes import format_bytes

EXAMPLE = Path(__file__).resolve().parents[2] / "deploy" / "fleet" / "example.yaml"

FLEET = """\
name: kitchen
ssh:
  user: pi
hosts:
  - name: hub
    address: 10.0.0.1
    role: hub
    memory_bytes: 2GiB
    cores: 4
  - name: pi-1
    address: 10.0.0.2
    role: edge
    memory_bytes: 1GiB
    cores: 4
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "fleet.yaml"
    path.write_text(text)
    return path


def test_the_example_is_a_fleet() -> None:
    fleet = load(EXAMPLE)
    assert [host.name for host in fleet.hosts] == ["hub", "spare", "pi-1", "pi-2", "pi-3", "attic"]
    assert fleet.head.name == "hub"
    assert [host.name for host in fleet.nodes] == ["hub", "pi-1", "pi-2", "pi-3", "attic"]
    assert fleet.engine.kv_bytes == 1 << 30
    assert fleet.gateway.tls == TlsFiles("/etc/moemesh/gateway.pem", "/etc/moemesh/gateway.key")
    attic = fleet.hosts[-1]
    assert (attic.memory_bytes, attic.link_bytes_per_s) == (5 << 30, 12_000_000)
    assert attic.labels == {"site": "attic"}
    assert attic.ssh == Ssh("pi", "~/.ssh/fleet_ed25519", 2222, fleet.ssh.options)


def test_what_a_short_file_leaves_open_is_decided(tmp_path: Path) -> None:
    fleet = load(write(tmp_path, FLEET))
    hub, edge = fleet.hosts
    assert hub == Host("hub", "10.0.0.1", HostRole.hub, 2 << 30, 4, True, 1, 1, ssh=Ssh("pi"))
    assert edge == Host("pi-1", "10.0.0.2", HostRole.edge, 1 << 30, 4, False, 0, 0, ssh=Ssh("pi"))
    assert fleet.controller.rebalance is Rebalance.auto
    assert fleet.nodes == fleet.hosts


def test_the_head_is_the_hub_that_says_so(tmp_path: Path) -> None:
    second = FLEET.replace("role: edge", "role: hub\n    head: true")
    assert load(write(tmp_path, second)).head.name == "pi-1"
    assert load(write(tmp_path, FLEET.replace("role: edge", "role: hub"))).head.name == "hub"


def test_gateways_of_one_host_have_ports_of_their_own(tmp_path: Path) -> None:
    fleet = load(write(tmp_path, FLEET))
    first, second = fleet.gateway_of(fleet.head), fleet.gateway_of(fleet.head, 1)
    assert (first.host, first.port, first.http_host, first.http_port) == ("10.0.0.1", 8471, "10.0.0.1", 8472)
    assert (second.port, second.http_port) == (8473, 8474)
    without = load(write(tmp_path, FLEET + "gateway: {host: 0.0.0.0, http_port: null}\n"))
    assert without.gateway_of(without.head).host == "0.0.0.0"
    assert without.gateway_of(without.head, 1).http_port is None


def test_a_node_is_configured_by_its_host(tmp_path: Path) -> None:
    node = load(write(tmp_path, FLEET)).hosts[1].node_config
    assert (node.memory_bytes, node.threads, node.host) == (1 << 30, 4, "10.0.0.2")


BETWEEN = "cores: 4\n  - name: pi-1\n    address: 10.0.0.2\n    "
IPV4 = FLEET[FLEET.index("10.0.0.1") : FLEET.index("10.0.0.2") + 8]
IPV6 = IPV4.replace("10.0.0.1", "fd00::1").replace("10.0.0.2", "fd00:0::1")
WRONG = {
    "a typo in a host": ("cores: 4\n  - name: pi", "core: 4\n  - name: pi", 9, "'core'; did you mean cores?"),
    "a typo at the top": ("ssh:", "shh:", 2, "'shh'; did you mean ssh?"),
    "a typo in a nested mapping": ("  user: pi", "  usr: pi", 3, "'usr'; did you mean user?"),
    "a key twice": ("ssh:", "name: a\nssh:", 2, "'name' stands there a second time"),
    "a number for text": ("name: kitchen", "name: 12", 1, "12; it must be text; put it into quotes"),
    "text for a number": ("cores: 4\n  - name: pi", "cores: all\n  - name: pi", 9, "must be a whole number"),
    "text for a mapping": ("ssh:\n  user: pi", "ssh: pi", 2, "must be a mapping"),
    "no device": ("role: edge\n", "role: edge\n    device: pi5\n", 13, "'pi5'; it is one of raspberry-pi-5"),
    "no size": ("2GiB", "2 buckets", 8, "'2 buckets' is not a size; write 256MiB"),
    "a negative number": ("2GiB", "-1", 8, "must be 0 or more"),
    "a number that is none": ("ssh:", "tracing: {ratio: .nan}\nssh:", 2, "must be 0 or more"),
    "no name": ("  - name: pi-1\n    address", "  - address", 10, "entry 2 of hosts needs a name"),
    "no memory": ("    memory_bytes: 1GiB\n", "", 10, "host pi-1 needs a memory_bytes"),
    "an edge of no memory": ("1GiB", "0", 13, "an edge holds experts"),
    "one name twice": ("name: pi-1", "name: hub", 10, "name of host hub is 'hub', but another host has it"),
    "one address twice": ("10.0.0.2", "10.0.0.1", 11, "'10.0.0.1', but host hub has it already"),
    "one IPv6 address in two spellings": (IPV4, IPV6, 11, "host hub has it already"),
    "no address": ("10.0.0.2", "10.0.0.256", 11, "no IP address and no name"),
    "an address with a port": ("10.0.0.2", "10.0.0.2:22", 11, "ports have keys of their own"),
    "an address of everybody": ("10.0.0.2", "0.0.0.0", 11, "no machine's own"),
    "an unknown role": ("role: edge", "role: leaf", 12, "'leaf'; it is one of hub, edge"),
    "no hub": ("role: hub", "role: edge", 4, "the fleet has no hub"),
    "two heads": (
        BETWEEN + "role: edge",
        BETWEEN.replace("4\n", "4\n    head: true\n") + "role: hub\n    head: true",
        14,
        "head of host pi-1 is true, but hub is the head",
    ),
    "an edge as head": ("role: edge", "role: edge\n    head: true", 13, "it is an edge"),
    "a router on an edge": ("role: edge", "role: edge\n    routers: 1", 13, "it is an edge"),
    "no router": ("role: hub", "role: hub\n    routers: 0", 1, "the fleet has no routers"),
    "no gateway": ("role: hub", "role: hub\n    gateways: 0", 1, "the fleet has no gateways"),
    "no hosts": (FLEET[FLEET.index("hosts") :], "", 1, "the fleet needs hosts"),
    "no cores": ("cores: 4\n  - name: pi", "cores: 0\n  - name: pi", 9, "must be 1 or more"),
    "a relative folder": ("role: edge", "role: edge\n    storage: data", 13, "must be an absolute path"),
    "a name that is none": ("name: pi-1", "name: Pi_1", 10, "cannot be 'Pi_1'"),
    "a label's name": ("role: edge", "role: edge\n    labels: {-x: a}", 13, "is no name of a label"),
    "a label's value": ("role: edge", "role: edge\n    labels:\n      x: a b", 14, "cannot be 'a b'"),
    "a reserved label": ("role: edge", "role: edge\n    labels: {ray.io/x: a}", 13, "for ray.io to set"),
    "a label that is a number": ("role: edge", "role: edge\n    labels: {x: 1}", 13, "put it into quotes"),
    "ports that clash": ("ssh:", "ports:\n  node: 8470\nssh:", 3, "ports.node (port 8470) and ports.contr"),
    "a range that clashes": ("ssh:", "ports:\n  node: 6380\nssh:", 3, "ports.ray (ports 6379 to 6385)"),
    "a gateway on SSH's port": ("ssh:", "gateway:\n  port: 22\nssh:", 3, "gateway.port (port 22)"),
    "many gateways": ("role: hub", "role: hub\n    gateways: 6", 5, "clash on host hub"),
    "a Redis without a port": ("ssh:", "redis: {address: db}\nssh:", 2, "'db'; it must be HOST:PORT"),
    "a Redis's file nowhere": ("ssh:", "redis: {password_file: p}\nssh:", 2, "must be an absolute path"),
    "a port that is none": ("ssh:", "ports: {node: 65536}\nssh:", 2, "ports are 1 to 65535"),
    "a range beyond the last port": ("ssh:", "ports: {workers: 65500}\nssh:", 2, "65500 to 65599"),
    "a host's own SSH port": ("role: edge", "role: edge\n    ssh: {port: 0}", 13, "ports are 1 to 65535"),
}


@pytest.mark.parametrize(("before", "after", "line", "words"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_named_with_its_line(
    before: str, after: str, line: int, words: str, tmp_path: Path
) -> None:
    assert before in FLEET
    path = write(tmp_path, FLEET.replace(before, after, 1))
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}, line {line}: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"), [("", "must be a mapping"), ("- 1", "must be a mapping"), ("a: [", "line 1")]
)
def test_what_is_no_mapping_is_refused(text: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        load(write(tmp_path, text))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml cannot be read"):
        load(tmp_path / "none.yaml")


def test_an_own_value_wins_over_a_merged_one(tmp_path: Path) -> None:
    text = FLEET.replace("  - name: hub", "  - &first\n    name: hub") + (
        "  - <<: *first\n    name: b\n    address: b.lan\n    cores: 2\n"
    )
    fleet = load(write(tmp_path, text))
    assert (fleet.hosts[2].name, fleet.hosts[2].cores, fleet.hosts[2].memory_bytes) == ("b", 2, 2 << 30)


names = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True)
sizes = st.integers(1, 1 << 44) | st.integers(1, 1 << 20).map(lambda count: count << 20)
addresses = st.ip_addresses().filter(lambda each: not each.is_unspecified and not each.is_multicast)
edges = st.fixed_dictionaries(
    {"memory_bytes": sizes, "cores": st.integers(1, 256)},
    optional={
        "labels": st.dictionaries(names, names, max_size=3),
        "storage": names.map(lambda name: f"/srv/{name}"),
        "link_bytes_per_s": sizes,
        "ssh": st.fixed_dictionaries({}, optional={"user": names, "port": st.integers(1, 1023)}),
    },
)


@st.composite
def fleets(draw: st.DrawFn) -> dict[str, Any]:
    """The mapping of a fleet file that is right."""
    hosts = draw(st.lists(edges, min_size=1, max_size=6))
    called = draw(st.lists(names, min_size=len(hosts), max_size=len(hosts), unique=True))
    at = draw(st.lists(addresses, min_size=len(hosts), max_size=len(hosts), unique=True))
    hubs = draw(st.sets(st.integers(0, len(hosts) - 1), min_size=1))
    for number, host in enumerate(hosts):
        role = "hub" if number in hubs else "edge"
        host |= {"name": called[number], "address": str(at[number]), "role": role}
    return {"name": draw(names), "ssh": {"user": draw(names)}, "hosts": hosts}


def loaded(values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> FleetFile:
    path = tmp_path_factory.getbasetemp() / "drawn.yaml"
    path.write_text(yaml.safe_dump(values))
    return load(path)


@settings(max_examples=40)
@given(values=fleets(), as_text=st.booleans())
def test_a_right_file_becomes_what_it_says(
    values: dict[str, Any], as_text: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    sized = [dict(host) for host in values["hosts"]]
    if as_text:
        for host in sized:
            host["memory_bytes"] = format_bytes(host["memory_bytes"])
    fleet = loaded({**values, "hosts": sized}, tmp_path_factory)
    assert sum(host.head for host in fleet.hosts) == 1
    assert fleet.head.hub
    for host, given_host in zip(fleet.hosts, values["hosts"], strict=True):
        ssh = {"user": values["ssh"]["user"]} | given_host.pop("ssh", {})
        assert {key: getattr(host.ssh, key) for key in ssh} == ssh
        assert {key: getattr(host, key) for key in given_host} == given_host


@settings(max_examples=40)
@given(values=fleets(), data=st.data())
def test_a_missing_or_misspelt_key_of_a_host_is_named(
    values: dict[str, Any], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    host = data.draw(st.sampled_from(values["hosts"]))
    key = data.draw(st.sampled_from(["name", "address", "role", "memory_bytes", "cores"]))
    value = host.pop(key)
    if data.draw(st.booleans()):
        host[key + "x"] = value
        expected = f"did you mean {key}?"
    else:
        expected = f"needs a {key}"
    with pytest.raises(ConfigError) as caught:
        loaded(values, tmp_path_factory)
    assert expected in str(caught.value)


@settings(max_examples=40)
@given(values=fleets(), port=st.integers(1, 65535))
def test_ports_of_a_host_that_is_accepted_do_not_overlap(
    values: dict[str, Any], port: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    values["ports"] = {"node": port}
    try:
        fleet = loaded(values, tmp_path_factory)
    except ConfigError:
        assume(False)
    for host in fleet.hosts:
        taken = [number for use in fleet.ports_of(host) for number in range(use.first, use.last + 1)]
        assert len(taken) == len(set(taken))
        assert all(0 < number < 1 << 16 for number in taken)
