"""A fleet of two machines on one, from `up --fleet` to `down --fleet`. The tests share it, in order."""

import json

import pytest

from cluster.fleet import processes
from support.clusters import Leaving, wait_until
from support.engines import tiny_library
from support.fleets import loopback_fleet

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.fleet, pytest.mark.timeout(600)]

PROMPT, TOKENS = "abc", "8"


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return tiny_library(tmp_path_factory.mktemp("library"), "qwen3-dense-between")


@pytest.fixture(scope="module")
def fleet(library, tmp_path_factory):
    root = tmp_path_factory.mktemp("f")
    hosts = {"hub": {"role": "hub"}, "one": {"role": "edge"}}
    made = loopback_fleet(root, hosts, model=str(library.path))
    yield made
    made.moemesh.run("down", "--fleet", str(made.file))


@pytest.fixture(scope="module")
def leaving(fleet):
    found = []
    for name in ("hub", "one"):
        one = Leaving(fleet.moemesh)
        one.moemesh = Host(fleet.folder(name))
        found.append(one)
    return found


class Host:
    """What `Leaving` looks at of one machine."""

    def __init__(self, folder):
        self.folder = folder

    def everything(self):
        record = self.folder.read()
        return [] if record is None else processes.family(record.processes)


def look(leaving):
    for one in leaving:
        one.look()


def test_up_starts_every_host(fleet, leaving):
    summary = fleet.moemesh.json("up", "--fleet", str(fleet.file))
    look(leaving)
    assert summary["hosts"] == ["hub", "one"]
    assert summary["grpc"].startswith("127.0.0.2:")
    status = fleet.moemesh.json("status", "--fleet", str(fleet.file))
    where = {node["id"]: node["address"].rpartition(":")[0] for node in status["nodes"]}
    assert where == {"hub": "127.0.0.2", "one": "127.0.0.3"}
    assert all(node["ready"] and node["experts"] for node in status["nodes"])
    assert [router["id"] for router in status["routers"]] == ["router-hub-0"]


def test_it_says_what_one_process_says(fleet, library):
    status = fleet.moemesh.json("status", "--fleet", str(fleet.file))
    words = ("generate", PROMPT, "--max-tokens", TOKENS)
    served = fleet.moemesh.json(*words, "--address", status["grpc"])
    alone = fleet.moemesh.json(*words, "--local", "--model", str(library.path))
    assert served["token_ids"] == alone["token_ids"]


def test_secrets_are_for_their_owner_alone(fleet):
    folders = [fleet.folder(name) for name in ("hub", "one")]
    assert len({folder.token.read_text() for folder in folders}) == 1
    assert len({folder.cluster_key() for folder in folders}) == 1
    assert not any(file.stat().st_mode & 0o077 for f in folders for file in (f.token, f.key))


def test_a_host_that_left_comes_back_with_the_next_up(fleet, leaving):
    left = fleet.moemesh.run("fleet", "leave", str(fleet.file), "--host", "one")
    assert left.returncode == 0, left.stderr
    assert fleet.folder("one").read() is None
    fleet.moemesh.json("up", "--fleet", str(fleet.file))
    look(leaving)

    wait_until(lambda: both_serve(fleet), "one serves again")


def test_a_host_whose_power_failed_comes_back_with_the_next_up(fleet, leaving):
    processes.kill(processes.family(fleet.folder("one").read().processes))
    wait_until(lambda: not both_serve(fleet), "its loss to be noticed", 60.0)
    fleet.moemesh.json("up", "--fleet", str(fleet.file))
    look(leaving)
    wait_until(lambda: both_serve(fleet), "one serves again", 60.0)


def both_serve(fleet):
    nodes = fleet.moemesh.json("status", "--fleet", str(fleet.file))["nodes"]
    return all(node["ready"] and node["health"] == "alive" for node in nodes) and len(nodes) == 2


def test_down_leaves_nothing(fleet, leaving):
    done = fleet.moemesh.json("down", "--fleet", str(fleet.file))
    assert done["hosts"] == 2
    for one in leaving:
        one.check()
    again = fleet.moemesh.run("down", "--fleet", str(fleet.file), "--json")
    assert json.loads(again.stdout)["error"]["code"] == "FAILED_PRECONDITION"
