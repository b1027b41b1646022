"""Fleets that cannot start: one line that names the host, nothing started anywhere."""

import shutil
import socket

import pytest

from support.engines import tiny_library
from support.fleets import loopback_fleet

pytestmark = [pytest.mark.fleet, pytest.mark.slow]


@pytest.fixture
def fleet(tmp_path):
    return loopback_fleet(tmp_path, {"hub": {"role": "hub"}, "one": {"role": "edge"}})


def refused(fleet):
    done = fleet.moemesh.run("up", "--fleet", str(fleet.file))
    assert done.returncode == 1
    assert not any((fleet.root / name / "state" / "state.json").exists() for name in ("hub", "one"))
    return done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("variable", "words"), [("FLEET_AWAY", "no way leads to it"), ("FLEET_STRANGE", "refuses the key")]
)
def test_a_host_that_ssh_does_not_reach(fleet, variable, words):
    fleet.moemesh.environment[variable] = "127.0.0.3"
    said = refused(fleet)
    assert said.startswith("error: host one (127.0.0.3) cannot be reached by ssh: ")
    assert words in said


def test_a_taken_port(fleet):
    port = fleet.values["hosts"][1]["ports"]["node"]
    with socket.create_server(("127.0.0.3", port)):
        said = refused(fleet)
    assert said.startswith(f"error: host one: port {port} on 127.0.0.3 of host one cannot be used")
    assert "ports.node" in said


def test_a_host_without_the_memory(fleet):
    fleet.values["hosts"][1]["memory_bytes"] = "4TiB"
    fleet.write()
    assert refused(fleet).startswith("error: host one has ")


def test_a_host_without_moemesh(fleet):
    fleet.values["hosts"][1]["venv"] = "/nowhere"
    fleet.write()
    assert "has no moemesh in /nowhere" in refused(fleet)


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_host_with_another_library(fleet, tmp_path):
    """Of the same name, place and shape."""
    case = "qwen3-dense-between"
    for host, trunk in (("hub", "f32"), ("one", "int8")):
        library = tiny_library(tmp_path / f"made-{host}", case, trunk=trunk)
        shutil.copytree(library.path, fleet.root / host / "model")
    fleet.values["model"] = "model"
    fleet.write()
    said = refused(fleet)
    assert said.startswith("error: host hub: router-hub-0 on hub: node one at 127.0.0.3:")
    assert "start both with the same model" in said
