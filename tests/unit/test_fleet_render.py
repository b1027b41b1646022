"""What is rendered from a fleet file says what the file says, and the same every time."""

from __future__ import annotations

import shutil
import stat
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.cli import app
from cluster.errors import ConfigError
from cluster.fleet.file import FleetFile, load
from cluster.fleet.folder import Folder
from cluster.fleet.render.files import files
from cluster.fleet.render.kubernetes import RAY_BYTES, USER
from cluster.fleet.render.ray_up import HOME_FILE, HOME_SECRETS, ray_up_notes
from cluster.fleet.render.systemd import unit
from cluster.fleet.render.written import fleet_text

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
EXAMPLE = DEPLOY / "fleet" / "example.yaml"
IMAGE = "registry/moemesh:1"

SHORT = """\
name: kitchen
ssh: {user: pi}
gateway: {insecure: true}
hosts:
  - {name: hub, address: 10.0.0.1, role: hub, memory_bytes: 0, cores: 2}
  - {name: pi-1, address: 10.0.0.2, role: edge, memory_bytes: 1GiB, cores: 4}
"""

LEAVE, JOIN, SERVE = (
    f"/opt/moemesh/bin/moemesh fleet {verb} ~/.config/moemesh/fleet.yaml"
    for verb in ("leave", "join", "serve")
)
JOIN = f"{JOIN} --secrets ~/.config/moemesh/secrets"
RAY_UP = f"""\
# ray up --no-config-cache ray-cluster.yaml; moemesh down --fleet
cluster_name: kitchen
max_workers: 1
upscaling_speed: 1
provider:
  type: local
  head_ip: 10.0.0.1
  worker_ips:
  - 10.0.0.2
auth:
  ssh_user: pi
file_mounts:
  ~/.config/moemesh/fleet.yaml: /home/me/fleet.yaml
  ~/.config/moemesh/secrets: /out/secrets
head_start_ray_commands:
- {LEAVE}
- ': ray start --autoscaling-config; {JOIN.replace(" ~/.config/moemesh/secrets", "")}
  ~/.config/moemesh/secrets --autoscaling-config ~/ray_bootstrap_config.yaml'
- {SERVE}
worker_start_ray_commands:
- export TERM=dumb; {LEAVE}
- export TERM=dumb; {JOIN}
"""

EDGE_POD = {
    "hostname": "pi-1",
    "subdomain": "kitchen",
    "securityContext": {"runAsUser": USER, "fsGroup": USER},
    "volumes": [
        {"name": "fleet", "configMap": {"name": "kitchen"}},
        {"name": "storage", "emptyDir": {}},
        {"name": "secrets", "secret": {"secretName": "kitchen"}},
    ],
}


@pytest.fixture
def short(tmp_path: Path) -> FleetFile:
    path = tmp_path / "short.yaml"
    path.write_text(SHORT)
    return load(path)


def documents(fleet: FleetFile) -> dict[str, dict[str, Any]]:
    """By kind and name."""
    text = files(fleet, "/fleet.yaml", "/out/secrets", IMAGE)["kubernetes.yaml"]
    return {f"{each['kind']} {each['metadata']['name']}": each for each in yaml.safe_load_all(text)}


@pytest.mark.parametrize("text", [SHORT, EXAMPLE.read_text()], ids=["short", "example"])
def test_a_written_fleet_is_read_as_the_same(text: str, tmp_path: Path) -> None:
    path, again = tmp_path / "fleet.yaml", tmp_path / "again.yaml"
    path.write_text(text)
    again.write_text(fleet_text(load(path)))
    assert load(again) == load(path)


def test_the_same_fleet_gives_the_same_texts() -> None:
    first, second = (files(load(EXAMPLE), "/f.yaml", "/out/secrets", IMAGE) for _ in range(2))
    assert first == second


def test_the_file_of_rays_launcher(short: FleetFile) -> None:
    assert files(short, "/home/me/fleet.yaml", "/out/secrets", IMAGE)["ray-cluster.yaml"] == RAY_UP


def test_rays_launcher_finds_moemesh_in_several_folders(short: FleetFile, tmp_path: Path) -> None:
    hub, edge = short.hosts
    fleet = replace(short, hosts=(hub, replace(edge, venv=str(tmp_path))))
    text = files(fleet, "/f", "/out/secrets", IMAGE)["ray-cluster.yaml"]
    command = yaml.safe_load(text)["worker_start_ray_commands"][1]
    script = tmp_path / "bin" / "moemesh"
    script.parent.mkdir()
    script.write_text('#!/bin/sh\necho "$@"\n')
    script.chmod(0o755)
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.split()[:2] == ["fleet", "join"]
    assert done.stdout.split()[2].endswith(HOME_FILE[1:])
    assert done.stdout.split()[-1].endswith(HOME_SECRETS[1:])


def test_what_rays_launcher_cannot_do_is_said() -> None:
    notes = ray_up_notes(load(EXAMPLE))
    assert len(notes) == 2
    assert "attic with the head's SSH user" in notes[0]
    assert "`Host attic.example.net`, `Port 2222`" in notes[1]
    text = files(load(EXAMPLE), "/f.yaml", "/out/secrets", IMAGE)["ray-cluster.yaml"]
    assert all(f"# {note}\n" in text for note in notes)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_accepts_the_units(short: FleetFile, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "moemesh").symlink_to("/bin/true")
    for host in short.hosts:
        host = replace(host, venv=str(tmp_path), ssh=replace(host.ssh, user="root"))
        path = tmp_path / "moemesh.service"
        path.write_text(unit(short, host))
        done = subprocess.run(["systemd-analyze", "verify", path], capture_output=True, text=True, timeout=60)
        complaints = [line for line in done.stderr.splitlines() if path.name in line]
        assert (done.returncode, complaints) == (0, []), done.stderr


def test_a_unit_runs_join_as_the_hosts_user(short: FleetFile) -> None:
    hub = replace(short.head, storage="/mnt/data", venv="/srv/venv")
    lines = unit(short, hub).splitlines()
    assert "User=pi" in lines
    assert "Environment=MOEMESH_STATE_DIR=/mnt/data/state" in lines
    assert "ExecStart=/srv/venv/bin/moemesh fleet join --block --host hub /etc/moemesh/fleet.yaml" in lines


def test_every_host_is_a_pod_of_its_name(short: FleetFile) -> None:
    cluster = documents(short)["RayCluster kitchen"]
    assert cluster["metadata"]["annotations"] == {"ray.io/overwrite-container-cmd": "true"}
    head, (edge,) = cluster["spec"]["headGroupSpec"], cluster["spec"]["workerGroupSpecs"]
    assert head["template"]["spec"]["hostname"] == "hub"
    assert [edge[key] for key in ("groupName", "replicas", "minReplicas", "maxReplicas")] == ["pi-1", 1, 1, 1]
    spec = dict(edge["template"]["spec"])
    (container,) = spec.pop("containers")
    assert spec == EDGE_POD
    assert container["image"] == IMAGE
    assert container["args"][0].endswith(
        "exec moemesh fleet join --block --host pi-1 /etc/moemesh/fleet.yaml"
    )
    assert container["resources"]["limits"] == {"memory": str((1 << 30) + RAY_BYTES)}
    assert "limits" not in head["template"]["spec"]["containers"][0]["resources"]


def test_pods_find_each_other_by_name(short: FleetFile, tmp_path: Path) -> None:
    found = documents(short)
    inside = tmp_path / "inside.yaml"
    inside.write_text(found["ConfigMap kitchen"]["data"]["fleet.yaml"])
    assert [host.address for host in load(inside).hosts] == ["hub.kitchen", "pi-1.kitchen"]
    names = found["Service kitchen"]["spec"]
    assert (names["clusterIP"], names["publishNotReadyAddresses"]) == ("None", True)


def test_the_service_of_the_gateways_selects_their_pods(short: FleetFile) -> None:
    found = documents(short)
    spec = found["Service kitchen-gateway"]["spec"]
    assert [port["port"] for port in spec["ports"]] == [8471, 8472]
    cluster = found["RayCluster kitchen"]["spec"]
    hub, edge = (
        group["template"]["metadata"]["labels"]
        for group in (cluster["headGroupSpec"], cluster["workerGroupSpecs"][0])
    )
    wanted = {key: value for key, value in spec["selector"].items() if key != "ray.io/cluster"}
    assert wanted.items() <= hub.items()
    assert not wanted.items() <= edge.items()


def test_volumes_that_are_mounted_are_there() -> None:
    cluster = documents(load(EXAMPLE))["RayCluster kitchen"]["spec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        spec = group["template"]["spec"]
        mounted = {mount["name"] for mount in spec["containers"][0]["volumeMounts"]}
        assert mounted == {volume["name"] for volume in spec["volumes"]}


def test_a_name_that_no_pod_can_have_is_refused(short: FleetFile) -> None:
    with pytest.raises(ConfigError, match="'My Fleet'; pods need"):
        files(replace(short, name="My Fleet"), "/f", "/out/secrets", IMAGE)


def test_the_images_user_is_the_pods() -> None:
    assert f"--uid {USER}" in (DEPLOY / "Dockerfile").read_text()


def test_the_command_writes_the_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a" / "b"
    assert app.run(["fleet", "render", str(EXAMPLE), "--out", str(out)]) == 0
    printed = capsys.readouterr()
    made = {str(path) for path in out.rglob("*") if path.is_file() and path.parent.name != "secrets"}
    assert set(printed.out.split()) == made | {str(out / "secrets")}
    assert len(made) == 8
    assert printed.err.count("note: ") == 2


def test_secrets_are_made_once_for_their_owner_alone_and_are_in_no_text(tmp_path: Path) -> None:
    own = Folder(tmp_path / "secrets")
    assert app.run(["fleet", "render", str(EXAMPLE), "--out", str(tmp_path)]) == 0
    token, key = own.token.read_text(), own.cluster_key()
    assert {stat.S_IMODE(file.stat().st_mode) for file in (own.token, own.key)} == {0o600}
    assert stat.S_IMODE(own.path.stat().st_mode) == 0o700
    texts = [path.read_text() for path in tmp_path.rglob("*.yaml")]
    assert not [text for text in texts if token in text or key.hex() in text]
    assert app.run(["fleet", "render", str(EXAMPLE), "--out", str(tmp_path)]) == 0
    assert (own.token.read_text(), own.cluster_key()) == (token, key)


def test_the_command_names_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "fleet.yaml"
    path.write_text(SHORT.replace("ssh:", "shs:"))
    assert app.run(["fleet", "render", str(path), "--out", str(tmp_path / "out")]) == 1
    assert "line 2: the fleet has no key 'shs'; did you mean ssh?" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert app.run(["fleet", "render", str(tmp_path / "none.yaml")]) == 2
    (tmp_path / "file").write_text("")
    assert app.run(["fleet", "render", str(EXAMPLE), "--out", str(tmp_path / "file" / "x")]) == 1
