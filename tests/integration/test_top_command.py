"""`moemesh top` in a terminal: it draws, obeys keys, and leaves the terminal as it was."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from cluster.balance.load import LoadStats
from cluster.controller.members import NO_TABLE
from cluster.controller.service import ControllerService
from cluster.controller.state import Shape
from cluster.dispatch.client import ControlClient
from cluster.dispatch.handshake import Identity
from cluster.dispatch.kinds import Kind
from cluster.fleet import processes
from cluster.fleet.folder import Folder, Record
from support.clusters import ROOT

COMMAND = [sys.executable, "-m", "cluster.cli.app", "top"]
PATIENCE_S = 60.0


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Of a command that finds a controller which two nodes and a router have told of themselves."""
    service = ControllerService(Shape(nodes=2, layers=3, experts=8, sparse=(0, 1, 2)), epoch=1)
    try:
        address = service.start()
        rows = np.tile(np.arange(8.0), (3, 1))
        load = LoadStats(256.0, 1.0, 7.0, 7.0, rows, np.full(3, 7.0)).to_wire()
        for role, name in (("node", "node-0"), ("node", "node-1"), ("router", "router-0")):
            with ControlClient(address, identity=Identity(role, name, 1)) as client:
                report = {"role": role, "id": name, "incarnation": 1, "address": "", "ready": True}
                report |= {"epoch": NO_TABLE[0], "table": NO_TABLE[1], "error": None, "stats": {}}
                client.call(Kind.SYNC, report | {"load": load if role == "router" else None})
        me = processes.mark(os.getpid())
        assert me is not None
        Folder(tmp_path).write(Record("up", me, (me,), controller=address, model="reference"))
        yield os.environ | {"MOEMESH_STATE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT), "COLUMNS": "80"}
    finally:
        service.shutdown()


def read_until(terminal: int, words: str) -> str:
    """What has been drawn when `words` are there."""
    seen, deadline = "", time.monotonic() + PATIENCE_S
    while words not in seen:
        ready, _, _ = select.select([terminal], [], [], max(deadline - time.monotonic(), 0.0))
        assert ready, f"{words!r} did not appear in {seen[-500:]!r}"
        seen += os.read(terminal, 1 << 16).decode(errors="replace")
    return seen


def test_keys_select_a_layer_and_quit(environment: dict[str, str]) -> None:
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    environment |= {"TERM": "xterm-256color", "LINES": "24"}
    process = subprocess.Popen(COMMAND, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    try:
        drawn = read_until(ours, "layer 0: 7 2.0×")
        assert "table 1.1" in drawn
        os.write(ours, b"j")
        read_until(ours, "layer 1: 7 2.0×")
        os.write(ours, b"\x1b[B")
        read_until(ours, "layer 2: 7 2.0×")
        os.write(ours, b"q")
        read_until(ours, "\x1b[?1049l")  # the screen of before is back
        assert process.wait(PATIENCE_S) == 0
        assert termios.tcgetattr(theirs) == before
    finally:
        process.kill()
        process.wait()
        os.close(ours)
        os.close(theirs)


def test_without_a_terminal_it_prints_once(environment: dict[str, str]) -> None:
    done = subprocess.run(COMMAND, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "layer 0: 7 2.0× on node-1" in done.stdout
    done = subprocess.run([*COMMAND, "--json"], env=environment, capture_output=True, text=True)
    assert json.loads(done.stdout)["load"][0] == list(range(8))
