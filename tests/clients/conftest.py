"""Environments for stock clients: tritonclient needs another protobuf than the gateway does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.gateway.service import GatewayService
from support.fake_router import FakeRouter
from support.gateways import gateway

# Pinned: a stock client is a fixed point to test against, not a dependency to follow.
TRITON = (
    "tritonclient[grpc]==2.73.*",
    "grpcio-reflection<1.80",
    "grpcio-health-checking<1.80",
    "grpcio-tools<1.80",
)
OPENAI = ("openai==3.51.*",)
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
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements]
    _install(folder, requirements, [sys.executable, "-m", "venv", str(folder)], install)
    return python


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
def service() -> Iterator[GatewayService]:
    """A gateway that continues a prompt by repeating it."""
    with FakeRouter() as router, gateway({"r0": router.address}, http_port=0) as running:
        yield running


@pytest.fixture(scope="module")
def address(service: GatewayService) -> str:
    return service.address
