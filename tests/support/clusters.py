"""The `moemesh` command as a user has it: a process of its own, a state folder, what it leaves."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from cluster.fleet import processes
from cluster.fleet.folder import Folder
from cluster.fleet.processes import Mark

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 300.0
"""For what takes ten seconds on an idle machine, and a minute more before the kernels are compiled."""


def wait_until(what: Callable[[], Any], message: str, seconds: float = PATIENCE_S) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := what()):
        assert time.monotonic() < deadline, f"{message} did not happen in {seconds:g} s"
        time.sleep(0.02)
    return value


class Moemesh:
    """Commands over one state folder. `up` options common to all tests are in `options`."""

    def __init__(self, state: Path, *options: str) -> None:
        self.folder = Folder(state)
        self.options = ("--grpc", "127.0.0.1:0", "--no-sample", *options)
        self.environment = {**os.environ, "MOEMESH_STATE_DIR": str(state), "PYTHONPATH": str(ROOT)}

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """The caller waits for it; `run` does both."""
        return subprocess.Popen(
            [sys.executable, "-m", "cluster.cli.app", *arguments],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments)
        try:
            out, errors = process.communicate(timeout=PATIENCE_S)
        except BaseException:
            process.terminate()  # `up` stops what it started
            process.communicate()
            raise
        return subprocess.CompletedProcess(process.args, process.returncode, out, errors)

    def json(self, *arguments: str) -> Any:
        """Of a command that must succeed."""
        done = self.run(*arguments, "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    def up(self, *options: str) -> Any:
        return self.json("up", *self.options, *options)

    def start_up(self, *options: str) -> subprocess.Popen[str]:
        return self.start("up", *self.options, *options)

    def members(self) -> dict[str, dict[str, Any]]:
        status = self.json("status")
        return {one["id"]: one for role in ("nodes", "routers", "gateways") for one in status[role]}

    def log(self, name: str) -> str:
        try:
            return (self.folder.logs / f"{name}.log").read_text()
        except OSError:
            return ""

    def role_pid(self, name: str) -> int | None:
        """Of the latest process of a role, as its log tells; None before it has started."""
        found: list[str] = re.findall(r"starts as process (\d+)", self.log(name))
        return int(found[-1]) if found else None

    def everything(self) -> list[Mark]:
        """All that runs for the cluster now, `up` itself not included."""
        record = self.folder.read()
        return [] if record is None else processes.family(record.processes)

    def stop(self) -> None:
        """For the end of a test, whatever state it left."""
        if self.folder.read() is not None:
            self.run("down")


class Leaving:
    """Remembers all processes, ports and files of a cluster while it runs, to see that they go."""

    def __init__(self, moemesh: Moemesh) -> None:
        self.moemesh = moemesh
        self.processes: set[Mark] = set()
        self.ports: set[int] = set()
        self.files: set[Path] = set()

    def look(self) -> None:
        record = self.moemesh.folder.read()
        if record is None:
            return
        self.processes.update(self.moemesh.everything())
        if record.temp:
            self.files.add(Path(record.temp))
        for one in self.processes:
            self.ports.update(listening(one.pid))

    def check(self) -> None:
        assert self.processes, "it never ran"
        left = processes.wait(self.processes, timeout_s=10.0)
        assert not left, f"processes left: {[(one.pid, processes.name(one)) for one in left]}"
        assert not [file for file in self.files if file.exists()]
        taken = {c.laddr.port for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
        assert not self.ports & taken
        assert self.moemesh.folder.read() is None
        assert not self.moemesh.folder.token.exists()


def listening(pid: int) -> dict[int, str]:
    """Port to address of every socket on which a process listens."""
    try:
        found = psutil.Process(pid).net_connections("tcp")
    except psutil.Error:
        return {}
    return {c.laddr.port: c.laddr.ip for c in found if c.status == psutil.CONN_LISTEN}


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
