"""One real cluster: `up`, questions to it, deaths in it, `down`. The tests run in order and share it."""

import json
import os
import sys
from pathlib import Path

import httpx
import pytest

from cluster.dispatch.client import ControlClient
from cluster.dispatch.handshake import Identity
from cluster.dispatch.kinds import Kind
from cluster.errors import ProtocolError
from cluster.fleet import processes
from cluster.fleet.roles import cores
from cluster.fleet.wanted import NICE
from support.clusters import Leaving, Moemesh, kill, listening, wait_until
from support.engines import tiny_library

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

PROMPT = "abc"


@pytest.fixture(scope="module")
def moemesh(tmp_path_factory):
    root = tmp_path_factory.mktemp("up")
    library = tiny_library(root, "qwen3-dense-between")
    cluster = Moemesh(root / "state", "--model", str(library.path))
    cluster.summary = cluster.up("--routers", "2", "--gateways", "2")
    yield cluster
    cluster.stop()


@pytest.fixture(scope="module")
def leaving(moemesh):
    return Leaving(moemesh)


def generate(moemesh):
    return moemesh.json("generate", PROMPT, "--max-tokens", "8")["token_ids"]


@pytest.fixture(scope="module")
def tokens(moemesh):
    """What the cluster says before anything happens to it."""
    return generate(moemesh)


def all_ready(moemesh):
    found = moemesh.members()
    return all(m["ready"] and m["health"] == "alive" for m in found.values()) and found


def niceness_of_threads(pid):
    return [os.getpriority(os.PRIO_PROCESS, int(thread)) for thread in os.listdir(f"/proc/{pid}/task")]


def test_everybody_is_ready_and_holds_its_share(moemesh):
    status = moemesh.json("status")
    assert status["table"] == {"epoch": 1, "version": 1, "active": 1}
    assert [n["id"] for n in status["nodes"]] == ["node-0", "node-1", "node-2"]
    assert [r["id"] for r in status["routers"]] == ["router-0", "router-1"]
    assert all(m["ready"] for m in moemesh.members().values())
    shares = [n["experts"] for n in status["nodes"]]
    assert max(shares) - min(shares) <= 1
    assert all(n["stats"]["resident_bytes"] > 0 for n in status["nodes"])
    assert [r["stats"]["kv_type"] for r in status["routers"]] == ["bf16", "bf16"]
    assert status["grpc"] == moemesh.summary["grpc"]
    assert status["addresses"] == moemesh.summary["gateways"]
    assert [g["id"] for g in status["gateways"]] == ["gateway-0", "gateway-1"]


@pytest.mark.parametrize("name", ["node-0", "node-1", "node-2", "router-0", "router-1"])
def test_what_computes_found_every_kernel_in_the_cache(moemesh, name):
    log = (moemesh.folder.logs / f"{name}.log").read_text()
    assert "variants from the cache, 0 compiled" in log


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells the niceness of a thread")
def test_what_computes_gives_way_to_the_gateway(moemesh):
    """Their niceness is that of the role's threads; those that were there before it are Ray's."""
    nicest = {name: max(niceness_of_threads(moemesh.role_pid(name))) for name in moemesh.members()}
    gateways = {nicest.pop(f"gateway-{number}") for number in range(2)}
    assert set(nicest.values()) == {min(19, gateway + NICE) for gateway in gateways}


def test_everybody_leads_a_session(moemesh):
    """Which counts as nice as the role is, where Linux takes such orders."""
    pids = {name: moemesh.role_pid(name) for name in moemesh.members()}
    assert {name: os.getsid(pid) for name, pid in pids.items()} == pids
    if cores.AUTOGROUP.exists():
        orders = {name: Path(f"/proc/{pid}/autogroup").read_text() for name, pid in pids.items()}
        nice = {name: 0 if name.startswith("gateway") else NICE for name in pids}
        assert {name: int(order.split()[-1]) for name, order in orders.items()} == nice


def test_status_is_a_table_for_people(moemesh):
    done = moemesh.run("status")
    assert done.returncode == 0
    for name in ("node-2", "router-1", "gateway-1", "ready", "1.1 active"):
        assert name in done.stdout


def test_it_speaks_http(moemesh, tokens):
    base = moemesh.json("status")["http"]
    assert base == moemesh.summary["http"]
    body = {"prompt": PROMPT, "max_tokens": 8, "temperature": 0, "logprobs": 0}
    answer = httpx.post(f"{base}/v1/completions", json=body, timeout=60).json()
    assert answer["usage"]["completion_tokens"] == len(tokens)
    assert httpx.get(f"{base}/ready", timeout=60).status_code == 200
    metrics = httpx.get(f"{base}/metrics", timeout=60).text
    assert 'moemesh_member_up{member="node-2",role="node"} 1.0' in metrics
    assert "moemesh_router_steps_total" in metrics


def test_a_stranger_at_one_of_its_ports_gets_nothing(moemesh):
    members = moemesh.members()
    addresses = [members[name]["address"] for name in ("node-0", "router-0")]
    for address in (*addresses, moemesh.folder.require().controller):
        client = ControlClient(address, identity=Identity("tool", "stranger"))
        with client, pytest.raises(ProtocolError, match="cluster's key"):
            client.call(Kind.STATUS, {})


def test_it_generates(tokens):
    assert len(tokens) == 8


def test_every_gateway_gives_the_same_tokens(moemesh, tokens):
    addresses = [one["grpc"] for one in moemesh.summary["gateways"]]
    assert len(set(addresses)) == 2
    for address in addresses:
        found = moemesh.json("generate", PROMPT, "--max-tokens", "8", "--address", address)
        assert found["token_ids"] == tokens


def test_up_again_is_refused_and_harms_nothing(moemesh, tokens):
    done = moemesh.run("up", *moemesh.options, "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["code"] == "ALREADY_EXISTS"
    assert generate(moemesh) == tokens


def test_nobody_listens_beyond_loopback(moemesh, leaving):
    leaving.look()
    addresses = {ip for one in moemesh.everything() for ip in listening(one.pid).values()}
    assert addresses <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def test_ray_asks_for_a_token(moemesh):
    assert moemesh.folder.token.stat().st_mode & 0o077 == 0
    assert len(moemesh.folder.token.read_text()) >= 32


def test_a_killed_node_comes_back_with_its_experts(moemesh, tokens):
    """With those that it had, or with a share of its own where others got them while it was away."""
    before, table = moemesh.members()["node-1"], moemesh.json("status")["table"]
    kill(moemesh.role_pid("node-1"))
    after = wait_until(
        lambda: (
            (m := all_ready(moemesh))
            and m["node-1"]["incarnation"] > before["incarnation"]
            and m["node-1"]["experts"] > 0
            and m["node-1"]
        ),
        "node-1 comes back with experts",
    )
    if moemesh.json("status")["table"] == table:
        assert after["experts"] == before["experts"]
    assert after["stats"]["restarts"] == 1
    assert generate(moemesh) == tokens


def test_a_killed_gateway_is_not_missed_and_comes_back(moemesh, tokens):
    """Clients that are told no address know both."""
    before = moemesh.members()["gateway-0"]
    kill(moemesh.role_pid("gateway-0"))
    assert generate(moemesh) == tokens
    wait_until(
        lambda: (m := all_ready(moemesh)) and m["gateway-0"]["incarnation"] > before["incarnation"],
        "gateway-0 comes back",
    )


def test_a_killed_controller_comes_back_with_a_higher_epoch(moemesh, tokens):
    kill(moemesh.role_pid("controller"))

    def back():
        done = moemesh.run("status", "--json")
        table = json.loads(done.stdout).get("table", {})
        return table.get("epoch") == 2 and table["active"] == table["version"]

    wait_until(back, "the controller comes back")
    assert wait_until(lambda: all_ready(moemesh), "everybody has found it")
    assert generate(moemesh) == tokens


def test_down_leaves_nothing(moemesh, leaving):
    leaving.look()
    assert any(processes.name(one) == "raylet" for one in leaving.processes)
    assert moemesh.json("down")["stopped"]
    leaving.check()
    assert not moemesh.folder.path.exists()


def test_down_again_is_refused(moemesh):
    done = moemesh.run("down")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1] == "error: no cluster is up: there is nothing to stop"
