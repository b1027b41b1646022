"""Processes of neighbouring protocols work together, whichever is the newer; others are refused by name."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster.dispatch.handshake import KEY_VARIABLE

SCRIPT = Path(__file__).parents[1] / "support" / "other_protocol.py"
LIMIT_S = 60.0


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """With a key, so that the whole greeting is spoken."""
    key = tmp_path / "key"
    key.write_bytes(bytes(range(32)))
    return {**os.environ, KEY_VARIABLE: str(key), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


@contextmanager
def node(protocol: int, environment: dict[str, str]) -> Iterator[str]:
    command = [sys.executable, str(SCRIPT), str(protocol), "node"]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.communicate(timeout=LIMIT_S)


def ask(protocol: int, address: str, environment: dict[str, str]) -> str:
    command = [sys.executable, str(SCRIPT), str(protocol), "router", address]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_either_may_be_the_newer(environment: dict[str, str]) -> None:
    with node(2, environment) as address:
        assert ask(1, address, environment) == "agreed"
        assert ask(3, address, environment) == "agreed"


def test_two_protocols_apart_is_refused_by_name_from_either_side(environment: dict[str, str]) -> None:
    with node(1, environment) as address:
        assert "r1 speaks protocol 3, node n0 speaks 1; upgrade the older one" in ask(3, address, environment)
    with node(3, environment) as address:
        assert "r1 speaks protocol 1, node n0 speaks 3; upgrade the older one" in ask(1, address, environment)
