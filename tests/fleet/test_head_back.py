"""The head is killed and comes back: nothing else ends, streams go on, and it knows everybody again."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import psutil
import pytest

from cluster.errors import MoemeshError
from cluster.fleet import processes
from cluster.fleet.ask import Controller
from cluster.fleet.folder import Folder
from cluster.fleet.processes import Mark
from fleet.redis import Redis, redis
from support.clusters import wait_until
from support.debian import CannotRun
from support.engines import tiny_library
from support.fleets import LoopbackFleet, loopback_fleet

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.fleet, pytest.mark.timeout(900)]

WORDS = ("generate", "abc", "--temperature", "0.8", "--seed", "7", "--max-tokens", "100")
HOSTS = {
    "hub": {"role": "hub", "routers": 0, "gateways": 0},
    "spare": {"role": "hub"},
    "third": {"role": "edge"},
}
MEMBERS = {*HOSTS, "router-spare-0", "gateway-spare-0"}


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return tiny_library(tmp_path_factory.mktemp("library"), "qwen3-dense-between")


@pytest.fixture(params=["disk", "redis"])
def database(request, tmp_path) -> Iterator[Redis | None]:
    """Where the head's Ray keeps what it knows; None: on the head's disk."""
    with ExitStack() as stack:
        try:
            yield stack.enter_context(redis(tmp_path / "redis")) if request.param == "redis" else None
        except CannotRun as reason:
            pytest.skip(str(reason))


@pytest.fixture
def fleet(library, database, tmp_path):
    more = {}
    if database is not None:
        address = f"127.0.0.1:{database.port}"
        more["redis"] = {"address": address, "password_file": str(database.password_file)}
    made = loopback_fleet(
        tmp_path / "f", HOSTS, model=str(library.path), controller={"min_replicas": 2}, **more
    )
    yield made
    made.moemesh.run("down", "--fleet", str(made.file))


def members(fleet: LoopbackFleet) -> dict[str, dict[str, Any]]:
    """Whom a controller that answers knows to be ready."""
    hub = fleet.values["hosts"][0]
    try:
        with Controller(f"{hub['address']}:{hub['ports']['controller']}", fleet.folder("hub")) as controller:
            return {one["id"]: one for one in controller.status()["members"] if one["ready"]}
    except MoemeshError:
        return {}


def role_of(host: Folder, name: str) -> Mark:
    """The process of a role, as `ps` shows it."""
    every = processes.family(host.read().processes)
    return next(one for one in every if f"ray::{name}" in psutil.Process(one.pid).cmdline()[0])


def test_the_head_comes_back_to_what_went_on_without_it(fleet, library, database):
    address = fleet.moemesh.json("up", "--fleet", str(fleet.file))["grpc"]
    alone = fleet.moemesh.json(*WORDS, "--local", "--model", str(library.path))["token_ids"]
    records = [fleet.folder(name).read() for name in ("spare", "third")]
    others = processes.family([one for record in records for one in record.processes])

    killed = time.monotonic()
    processes.kill(processes.family(fleet.folder("hub").read().processes))
    assert not members(fleet)
    assert fleet.moemesh.json(*WORDS, "--address", address)["token_ids"] == alone

    stream = fleet.moemesh.start(*WORDS, "--address", address, "--json")
    begin = time.monotonic()
    join = fleet.moemesh.start("fleet", "join", str(fleet.file), "--host", "hub")
    wait_until(lambda: members(fleet) or join.poll(), "the controller answers")
    assert not join.returncode, join.communicate()[1]
    answers = time.monotonic()
    wait_until(lambda: set(members(fleet)) == MEMBERS, "it knows everybody")
    knows = time.monotonic()
    where = "Redis" if database else "disk"
    print(
        f"\n{where}: {answers - begin:.1f} s after its start the controller answers, "
        f"after {knows - begin:.1f} s everybody is ready; {begin - killed:.1f} s without it before"
    )
    said, errors = stream.communicate(timeout=120)
    assert json.loads(said)["token_ids"] == alone, errors
    said, errors = join.communicate(timeout=120)
    assert join.returncode == 0, errors
    assert all(processes.alive(one) for one in others)

    router = role_of(fleet.folder("spare"), "RouterRole")
    processes.kill([router])
    again = (*WORDS, "--address", address)
    wait_until(lambda: not fleet.moemesh.run(*again).returncode, "Ray has started the router again")
    assert fleet.moemesh.json(*again)["token_ids"] == alone
    fleet.moemesh.json("up", "--fleet", str(fleet.file))
    assert all(processes.alive(one) for one in others if one != router)
    assert fleet.moemesh.json("down", "--fleet", str(fleet.file))["hosts"] == len(HOSTS)
    assert database is None or database.keys == 0
