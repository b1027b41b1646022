"""The machine with Ray's head and the controller dies; a router, a gateway and every expert are elsewhere."""

import json
import time

import pytest

from cluster.fleet import processes
from support.clusters import wait_until
from support.engines import tiny_library
from support.fleets import loopback_fleet

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.fleet, pytest.mark.timeout(900)]

WITHOUT_S = 60.0
WORDS = ("generate", "abc", "--temperature", "0.8", "--seed", "7", "--max-tokens")


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return tiny_library(tmp_path_factory.mktemp("library"), "qwen3-dense-between")


@pytest.fixture(scope="module")
def fleet(library, tmp_path_factory):
    hosts = {"hub": {"role": "hub", "routers": 0, "gateways": 0}, "spare": {"role": "hub"}}
    made = loopback_fleet(
        tmp_path_factory.mktemp("f"), hosts, model=str(library.path), controller={"min_replicas": 2}
    )
    yield made
    made.moemesh.run("down", "--fleet", str(made.file))


def everything_twice(fleet):
    nodes = fleet.moemesh.json("status", "--fleet", str(fleet.file))["nodes"]
    return len({node["experts"] for node in nodes}) == 1 and all(
        node["ready"] and node["experts"] == node["stats"]["held"] > 0 for node in nodes
    )


def test_streams_go_on_without_the_head_and_it_comes_back(fleet, library):
    address = fleet.moemesh.json("up", "--fleet", str(fleet.file))["grpc"]
    alone = fleet.moemesh.json(*WORDS, "100", "--local", "--model", str(library.path))["token_ids"]
    wait_until(lambda: everything_twice(fleet), "two copies of every expert")
    stream = fleet.moemesh.start(*WORDS, "100", "--address", address, "--json")
    processes.kill(processes.family(fleet.folder("hub").read().processes))
    said, errors = stream.communicate(timeout=120)
    assert stream.returncode == 0, errors
    assert json.loads(said)["token_ids"] == alone
    begin, served = time.monotonic(), 0
    while time.monotonic() < begin + WITHOUT_S:
        assert fleet.moemesh.json(*WORDS, "100", "--address", address)["token_ids"] == alone
        served += 1
    assert served > 1
    fleet.moemesh.json("up", "--fleet", str(fleet.file))
    assert fleet.moemesh.json(*WORDS, "100", "--address", address)["token_ids"] == alone
