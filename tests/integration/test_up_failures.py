"""`up` that cannot or must not finish: it says why, and nothing of it stays."""

import contextlib
import json
import signal
import socket

import pytest

from cluster.types import ExpertId
from support import libraries
from support.clusters import PATIENCE_S, Leaving, Moemesh, kill, wait_until
from support.engines import tiny_library

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return tiny_library(tmp_path_factory.mktemp("library"), "qwen3-tied-gqa")


@pytest.fixture
def moemesh(library, tmp_path):
    cluster = Moemesh(tmp_path / "state", "--model", str(library.path))
    yield cluster
    cluster.stop()


def finish(process):
    """Exit code, stdout, stderr of an `up` that was interfered with."""
    out, errors = process.communicate(timeout=PATIENCE_S)
    return process.returncode, out, errors


def look_until(leaving, condition, message):
    def both():
        leaving.look()
        return condition()

    return wait_until(both, message)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "sigterm"]
)
def test_a_signal_leaves_nothing(moemesh, number, code):
    leaving = Leaving(moemesh)
    process = moemesh.start_up()
    look_until(leaving, lambda: moemesh.role_pid("node-0"), "node-0 starts")
    process.send_signal(number)
    assert finish(process)[0] == code
    leaving.check()
    assert not moemesh.folder.path.exists()


def test_ctrl_c_while_ray_starts_leaves_nothing(moemesh):
    leaving = Leaving(moemesh)
    process = moemesh.start_up()
    look_until(leaving, lambda: len(leaving.processes) > 2, "Ray starts its processes")
    process.send_signal(signal.SIGINT)
    code, out, errors = finish(process)
    assert (code, out) == (130, "")
    assert errors.splitlines()[-1] == "error: interrupted"
    leaving.check()
    assert not moemesh.folder.path.exists()


def test_what_a_killed_up_left_is_ended_by_the_next_command(moemesh):
    leaving = Leaving(moemesh)
    process = moemesh.start_up()
    look_until(leaving, lambda: moemesh.role_pid("node-0"), "node-0 starts")
    process.kill()
    process.communicate()
    leaving.look()
    assert moemesh.run("down").returncode == 0
    leaving.check()


def test_a_node_that_dies_while_up_waits_is_named(moemesh):
    leaving = Leaving(moemesh)
    process = moemesh.start_up()
    kill(look_until(leaving, lambda: moemesh.role_pid("node-1"), "node-1 starts"))
    code, _, errors = finish(process)
    last = errors.splitlines()[-1]
    assert code == 1
    assert last.startswith("error: node-1 ")
    assert "died" in last
    assert "last words" in last
    leaving.check()
    assert moemesh.log("node-1")


def test_ray_that_dies_while_up_waits_takes_all_with_it(moemesh):
    leaving = Leaving(moemesh)
    process = moemesh.start_up()
    look_until(leaving, lambda: moemesh.role_pid("node-0"), "node-0 starts")
    kill(moemesh.folder.read().processes[0].pid)
    code, _, errors = finish(process)
    assert code == 1
    assert errors.splitlines()[-1].startswith("error: ")
    leaving.check()


def test_a_damaged_blob_is_refused_by_the_node_that_loads_it(moemesh, library, tmp_path):
    broken = libraries.copy(library, tmp_path)
    libraries.flip_bit(broken, broken.expert_ref("", ExpertId(broken.spec.sparse_layers[0], 0)))
    done = moemesh.run("up", *moemesh.options, "--model", str(broken.path), "--json")
    assert done.returncode == 1
    error = json.loads(done.stdout)["error"]
    assert error["code"] == "DATA_LOSS"
    assert error["message"].startswith("node-0: ")
    assert moemesh.folder.read() is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--memory-per-node", "16"), "at least"),
        (("--kv-memory", "1KiB"), "--kv-memory of 1024 bytes"),
    ],
)
def test_a_budget_that_is_too_small_is_refused_with_the_number_needed(moemesh, options, words):
    done = moemesh.run("up", *moemesh.options, *options)
    assert done.returncode == 1
    assert words in done.stderr.splitlines()[-1]
    assert moemesh.folder.read() is None


def test_a_taken_port_is_refused_before_anything_starts(moemesh):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = moemesh.run("up", *moemesh.options, "--grpc", f"127.0.0.1:{port}")
    assert done.returncode == 1
    assert f"port {port} on 127.0.0.1" in done.stderr
    assert f"--grpc 127.0.0.1:{port + 1}" in done.stderr
    assert not moemesh.folder.path.exists()


def test_a_taken_port_of_the_second_gateway_is_named(moemesh):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        options = ("--grpc", f"127.0.0.1:{port - 2}", "--http", "off", "--gateways", "2")
        done = moemesh.run("up", *moemesh.options, *options)
    assert done.returncode == 1
    assert f"port {port} on 127.0.0.1" in done.stderr
    assert not moemesh.folder.path.exists()


def test_a_host_beyond_loopback_is_refused(moemesh):
    done = moemesh.run("up", *moemesh.options, "--grpc", "0.0.0.0:0")
    assert done.returncode == 1
    assert "--insecure" in done.stderr


def test_a_variant_that_was_not_packed_is_refused(moemesh):
    done = moemesh.run("up", *moemesh.options, "--experts", "int4")
    assert done.returncode == 1
    assert "has no variant 'int4'" in done.stderr


def test_a_record_of_a_dead_cluster_is_removed(moemesh):
    leaving = Leaving(moemesh)
    process = moemesh.start_up()
    look_until(leaving, lambda: len(leaving.processes) > 2, "Ray starts its processes")
    process.kill()
    process.communicate()
    for one in leaving.processes:
        kill_if_alive(one)
    wait_until(lambda: not moemesh.everything(), "everything ends")
    done = moemesh.run("down")
    assert done.returncode == 1
    assert "removed what one that had crashed left" in done.stderr
    leaving.check()


def kill_if_alive(one):
    with contextlib.suppress(ProcessLookupError):
        kill(one.pid)
