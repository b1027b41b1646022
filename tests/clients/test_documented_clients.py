"""The snippets of docs/clients.md, run as they stand there."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from cluster.gateway.service import GatewayService

pytestmark = [pytest.mark.clients, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "clients.md").read_text()
ANSWER = ("And it came to pass" * 2)[:16]  # the scripted router repeats the prompt


def snippet(label: str, service: GatewayService) -> str:
    """The block of this label, with the addresses of `service`."""
    (code,) = re.findall(rf"^```{label}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return (
        str(code).replace("127.0.0.1:8471", service.address).replace("127.0.0.1:8472", service.http_address)
    )


def run(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"{' '.join(command)} failed:\n{done.stderr[-3000:]}"
    return done.stdout


def written(folder: Path, name: str, code: str) -> str:
    (folder / name).write_text(code)
    return name


def test_openai(openai_python: Path, service: GatewayService, tmp_path: Path) -> None:
    file = written(tmp_path, "client.py", snippet("python openai", service))
    assert run([str(openai_python), file], tmp_path) == ANSWER


def test_tritonclient(client_python: Path, service: GatewayService, tmp_path: Path) -> None:
    file = written(tmp_path, "client.py", snippet("python tritonclient", service))
    assert run([str(client_python), file], tmp_path) == ANSWER


def test_grpcio(client_python: Path, service: GatewayService, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "protos", tmp_path / "protos")
    (command,) = re.findall(r"^python (-m grpc_tools\.protoc .*)$", PAGE, re.MULTILINE)
    run([str(client_python), *command.split()], tmp_path)
    file = written(tmp_path, "client.py", snippet("python grpcio", service))
    assert run([str(client_python), file], tmp_path) == ANSWER


def test_node(node_folder: Path, service: GatewayService, tmp_path: Path) -> None:
    shutil.copy(ROOT / "protos" / "generation.proto", tmp_path)
    (tmp_path / "node_modules").symlink_to(node_folder / "node_modules")
    file = written(tmp_path, "client.js", snippet("js node", service))
    assert run(["node", file], tmp_path) == ANSWER


def test_curl(service: GatewayService, tmp_path: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    commands = re.findall(r"^```sh\n(curl .*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    shown = run(["sh", "-c", commands[0].replace("127.0.0.1:8472", service.http_address)], tmp_path)
    assert shown.rstrip().endswith("data: [DONE]")
