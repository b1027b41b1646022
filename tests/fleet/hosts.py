"""A host of its own on this machine: addresses, name, processes, memory files, /tmp and home are private.

Made of Linux namespaces without names: the kernel drops them, and whatever was mounted or ran in them, with
the first process of the host, which ends with the test that started it, however that ended. Files of the
machine are the same in all hosts, but for those folders.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import psutil

from fleet.needs import NAMESPACES

ROOT = Path(__file__).resolve().parents[2]
DOWNLOADS = ROOT / ".fleet"
"""Programs that some tests need, unpacked; ignored by git, and kept."""

INIT = Path(__file__).with_name("init.py")
START_S, RUN_S, END_S = 15.0, 60.0, 10.0
ENTER = ("--net", "--uts", "--mount", "--ipc", "--pid")


@dataclass(frozen=True)
class Spec:
    """folder: of this host's own files, with etc/hosts and etc/passwd in it. private: folders that are its
    own; keep: what in them is the machine's all the same. clock_s: its monotonic clock is ahead."""

    name: str
    address: str
    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    private: tuple[str, ...] = ("/tmp", str(Path.home()))
    keep: tuple[str, ...] = ()
    clock_s: int = 0

    def to_json(self) -> str:
        given = {"name": self.name, "folder": str(self.folder), "private": self.private, "keep": self.keep}
        return json.dumps(given)


class Process:
    """A command in a host. pid: as the machine counts it."""

    def __init__(self, outside: subprocess.Popen[str], log: Path | None) -> None:
        self._outside = outside
        self.log = log
        self.pid = _only_child(outside)

    @property
    def input(self) -> IO[str]:
        assert self._outside.stdin is not None, "it was given a pipe"
        return self._outside.stdin

    @property
    def output(self) -> IO[str]:
        assert self._outside.stdout is not None, "it was given a pipe"
        return self._outside.stdout

    @property
    def returncode(self) -> int | None:
        return self._outside.poll()

    def send(self, number: signal.Signals) -> None:
        """Nothing, if it has ended."""
        if self._outside.poll() is not None:
            return
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)
        if number == signal.SIGCONT:  # nsenter stops with its command
            self._outside.send_signal(number)

    def wait(self, timeout_s: float) -> int:
        """Raises subprocess.TimeoutExpired."""
        return self._outside.wait(timeout_s)

    def close(self) -> None:
        """Have it gone: its input ends, then it is killed."""
        if self._outside.stdin is not None:
            self._outside.stdin.close()
        try:
            self._outside.wait(END_S)
        except subprocess.TimeoutExpired:
            self.send(signal.SIGKILL)
            self._outside.wait(END_S)
        finally:
            if self._outside.stdout is not None:
                self._outside.stdout.close()


class Host:
    """Lifecycle: start(), connect() once its device is there, close(); then nothing of it is left."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.name, self.address = spec.name, spec.address
        self.environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": "/tmp", **spec.environment}
        self._spawned: list[Process] = []
        self._holder: subprocess.Popen[str] | None = None
        self._numbers = "none"
        self.pid: int | None = None
        """Of its first process, as the machine counts it; None while it is down."""

    def start(self) -> None:
        command = ["unshare", *NAMESPACES, "--kill-child=KILL"]
        if self.spec.clock_s:
            command += ["--time", "--monotonic", str(self.spec.clock_s), "--boottime", str(self.spec.clock_s)]
        log = self.spec.folder / "init.log"
        with open(log, "w") as errors:
            self._holder = subprocess.Popen(
                [*command, sys.executable, str(INIT), self.spec.to_json()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        assert self._holder.stdout is not None, "it was given a pipe"
        word = self._holder.stdout.readline().strip()
        if word != "ready":
            self._holder.kill()
            self._holder.wait(END_S)
            raise RuntimeError(f"host {self.name} did not start: {log.read_text()}")
        self.pid = _only_child(self._holder)
        self._numbers = _namespace(self.pid)
        assert self._numbers not in ("", _namespace(os.getpid())), "its processes are its own"

    def connect(self, device: str, prefix: int, mtu: int) -> None:
        """Give the device its address. IPv6 is off: nothing is said that nobody asked for."""
        self.run(["sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6 || true"])
        self.run(["ip", "address", "add", f"{self.address}/{prefix}", "dev", device])
        self.run(["ip", "link", "set", device, "up", "mtu", str(mtu)])

    def run(self, command: Sequence[str], timeout_s: float = RUN_S, check: bool = True) -> str:
        """What it prints. Raises subprocess.CalledProcessError, with what it said, unless check is False."""
        done = subprocess.run(
            self._enter(command), env=self.environment, capture_output=True, text=True, timeout=timeout_s
        )
        if check and done.returncode:
            error = subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)
            error.add_note(done.stderr)
            raise error
        return done.stdout

    def spawn(
        self, command: Sequence[str], log: Path | None = None, environment: Mapping[str, str] | None = None
    ) -> Process:
        """Start it and go on. It reads `input`, its output is read as `output`, its errors go to `log`."""
        errors: Any = subprocess.DEVNULL if log is None else open(log, "a")  # noqa: SIM115
        outside = subprocess.Popen(
            self._enter(command),
            env={**self.environment, **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        if log is not None:
            errors.close()
        process = Process(outside, log)
        self._spawned.append(process)
        return process

    def processes(self) -> list[psutil.Process]:
        """All that run in it, its first one not included."""
        running = psutil.process_iter()
        return [one for one in running if one.pid != self.pid and _namespace(one.pid) == self._numbers]

    def wake(self) -> None:
        """What nsenter has of a command stops with it, and has to be told to go on."""
        for process in self._spawned:
            process.send(signal.SIGCONT)

    def kill(self) -> None:
        """As if its power failed: every process ends at once, and its links carry nothing any more."""
        assert self._holder is not None, "it was started"
        assert self.pid is not None, "it was started"
        os.kill(self.pid, signal.SIGKILL)
        self._holder.wait(END_S)

    def close(self) -> None:
        if self._holder is None:
            return
        assert self._holder.stdin is not None, "it was given a pipe"
        assert self._holder.stdout is not None, "it was given a pipe"
        if self._holder.poll() is None:
            self.kill()
        for process in self._spawned:
            process.close()
        self._holder.stdin.close()
        self._holder.stdout.close()
        self._holder, self.pid = None, None

    def _enter(self, command: Sequence[str]) -> list[str]:
        spaces = (*ENTER, "--time") if self.spec.clock_s else ENTER
        return ["nsenter", "--target", str(self.pid), *spaces, f"--wd={ROOT}", *command]


def _only_child(parent: subprocess.Popen[str]) -> int:
    """unshare and nsenter fork once. Their own pid if they ended before that, which their status tells."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and parent.poll() is None:
        if children := psutil.Process(parent.pid).children():
            return children[0].pid
        time.sleep(0.001)
    return parent.pid


def _namespace(pid: int) -> str:
    """Of its process numbers; "" where it has gone."""
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return ""
