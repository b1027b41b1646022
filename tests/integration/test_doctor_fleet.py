"""`moemesh doctor --fleet` on loopback addresses: real processes, and an ssh that runs them here."""

from __future__ import annotations

import json
import socket
import subprocess
import sys

import pytest

from cluster.fleet import ports
from cluster.fleet.links.listening import OURS
from support.fleets import loopback_fleet

pytestmark = [pytest.mark.timeout(300)]

ONE, AWAY = "127.0.0.3", "127.0.0.4"


@pytest.fixture
def fleet(tmp_path):
    gateway = {"port": ports.free_port("127.0.0.2"), "http_port": ports.free_port("127.0.0.2")}
    hosts = {"hub": {"role": "hub"}, "one": {"role": "edge", "cores": 4096}, "away": {"role": "edge"}}
    return loopback_fleet(tmp_path, hosts, gateway=gateway)


def test_every_link_is_measured_and_what_is_wrong_is_named_with_its_fix(fleet):
    fleet.moemesh.environment["FLEET_STRANGE"] = AWAY
    node = fleet.values["hosts"][1]["ports"]["node"]
    with socket.create_server((ONE, node)):
        done = fleet.moemesh.run("doctor", "--fleet", str(fleet.file), "--json")
    assert done.returncode == 1, done.stderr
    found = json.loads(done.stdout)
    wrong = {(one["host"], one["name"]): one for one in found["findings"] if one["good"] is False}
    assert f"ports.node {node}" in wrong["one", "ports"]["text"]
    assert wrong["one", "cpu time"]["fix"].startswith("`cores: ")
    away = wrong["away", "asked"]
    assert away["text"] == f"host away ({AWAY}) cannot be reached by ssh: it refuses the key"
    assert away["fix"].startswith("give ssh.user and ssh.key")
    assert not any(name == "reached" for _, name in wrong)
    assert abs(found["hosts"]["one"]["clock_s"]) <= found["hosts"]["one"]["clock_error_s"] + 0.001
    links = {(one["source"], one["target"]): one for one in found["links"]}
    assert set(links) == {("hub", "one"), ("one", "hub")}
    for link in links.values():
        assert 0 < link["median_s"] <= link["p99_s"]
        assert link["bytes_per_s"] > 0


def test_ports_are_free_when_the_conversation_ends():
    command = [sys.executable, "-m", "cluster.cli.app", "fleet", "survey"]
    number = ports.free_port(ONE)
    order = {"do": "listen", "address": ONE, "ports": [number], "secret": "00" * 32, "seconds": 100.0}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, **pipes) as agent:
        agent.stdin.write(json.dumps(order) + "\n")
        agent.stdin.flush()
        answer = json.loads(agent.stdout.readline())["answer"]
        assert answer["ports"][str(number)] == OURS
        assert ports.problem(ONE, number)
        agent.stdin.close()
        assert agent.wait(60.0) == 0
    assert ports.wait_free([f"{ONE}:{number}", f"{ONE}:{answer['more']}"], 10.0) == []
