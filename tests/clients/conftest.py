"""An environment for stock clients: tritonclient needs another protobuf than the gateway does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.fake_router import FakeRouter
from support.gateways import gateway

# Pinned: a stock client is a fixed point to test against, not a dependency to follow.
REQUIREMENTS = ("tritonclient[grpc]==2.73.*", "grpcio-reflection<1.80", "grpcio-health-checking<1.80")
INSTALL_S = 420


@pytest.fixture(scope="session")
def client_python(request: pytest.FixtureRequest) -> Path:
    """The interpreter of $MOEMESH_CLIENT_VENV, else of one in pytest's cache; installed when missing."""
    given = os.environ.get("MOEMESH_CLIENT_VENV")
    folder = Path(given) if given else request.config.cache.mkdir("client-venv")
    python, stamp = folder / "bin" / "python", folder / "installed.txt"
    wanted = "\n".join(REQUIREMENTS)
    if not stamp.exists() or stamp.read_text() != wanted:
        _run(sys.executable, "-m", "venv", str(folder))
        _run(str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *REQUIREMENTS)
        stamp.write_text(wanted)
    return python


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S, check=False)
    assert done.returncode == 0, (
        f"{' '.join(command)} failed: {done.stderr.strip()[-2000:]}; "
        "help: stock clients need a package index, or MOEMESH_CLIENT_VENV with them installed"
    )


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A gateway that continues a prompt by repeating it."""
    with FakeRouter() as router, gateway({"r0": router.address}) as service:
        yield service.address
