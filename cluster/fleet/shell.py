"""Commands on the machines of a fleet, by the `ssh` of PATH, with its configuration and agent."""

from __future__ import annotations

import shlex
import subprocess
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import PurePosixPath

from cluster.errors import HostFailed
from cluster.fleet.file import Host
from cluster.fleet.wanted import state_of

SSH_FAILED = 255
NOT_FOUND = 127
OPTIONS = (
    "BatchMode=yes",  # never asks
    "ConnectTimeout=10",
    "ServerAliveInterval=5",
    "ServerAliveCountMax=3",
)

_PROBLEMS = (
    ("host key verification failed", "its key is not the known one; connect once by hand, or remove the old "
     "key with `ssh-keygen -R`"),
    ("permission denied", "it refuses the key; give ssh.user and ssh.key in the fleet file, and put the "
     "public key into its authorized_keys"),
    ("could not resolve", "nobody knows its name; correct its address in the fleet file"),
    ("connection refused", "it runs no sshd on that port; start one, or correct ssh.port in the fleet file"),
    ("timed out", "it does not answer; is it switched on, and its address right?"),
    ("no route to host", "no way leads to it; is it switched on, and its address right?"),
    ("network is unreachable", "no way leads to it; is this machine in its network?"),
)  # fmt: skip


def arguments(host: Host) -> list[str]:
    """Of the ssh program, without a command."""
    ssh = host.ssh
    found = ["ssh", "-T", "-p", str(ssh.port)]
    for option in (*ssh.options, *OPTIONS):  # ssh takes the first that it is given
        found += ["-o", option]
    if ssh.key:
        found += ["-i", ssh.key, "-o", "IdentitiesOnly=yes"]
    return [*found, "--", f"{ssh.user}@{host.address}" if ssh.user else host.address]


def file_on(host: Host) -> str:
    """Where `up --fleet` puts the fleet file."""
    return str(PurePosixPath(host.storage) / "fleet.yaml")


def moemesh(host: Host, *words: str) -> str:
    """A command of moemesh over the state folder of its machine, for a shell."""
    command = shlex.join([f"{host.venv}/bin/moemesh", *words])
    return f"MOEMESH_STATE_DIR={shlex.quote(state_of(host))} {command}"


def problem(host: Host, code: int, said: str) -> str:
    """One line: what was wrong with a command on this machine and what to do. said: its stderr."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    last = lines[-1] if lines else f"exit code {code}"
    where = f"host {host.name} ({host.address})"
    if code == SSH_FAILED:
        known = next((help for words, help in _PROBLEMS if words in said.lower()), "")
        return f"{where} cannot be reached by ssh: {known or 'see what it says'} ({last})"
    if code == NOT_FOUND:
        return f"{where} has no moemesh in {host.venv}; install it there, or correct venv in the fleet file"
    return f"{where}: {last}"


class Shell:
    """One command after the other on one machine. `cancel` may come from any thread."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._cancelled = False

    def run(self, command: str, hear: Callable[[str], None], given: str = "") -> None:
        """Call `hear` with every line that it prints; given: its stdin. Raises HostFailed, and what `hear`
        raises."""
        with self.running(command) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            with suppress(BrokenPipeError), process.stdin as stdin:  # it ended early: its exit code says why
                stdin.write(given)
            for line in process.stdout:
                hear(line)

    @contextmanager
    def running(self, command: str) -> Iterator[subprocess.Popen[str]]:
        """The command, with pipes to its stdin and stdout. Leaving ends both and waits for it. Raises
        HostFailed then, unless something else was raised."""
        process = self._start(command)
        errors: list[str] = []
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        reader = threading.Thread(target=_collect, args=(process.stderr, errors), daemon=True)
        reader.start()
        try:
            yield process
        finally:
            with suppress(BrokenPipeError):
                process.stdin.close()
            process.stdout.close()
            code = process.wait()
            reader.join()
            process.stderr.close()
        if code:
            raise HostFailed(problem(self.host, code, "".join(errors)))

    def cancel(self) -> None:
        """End what runs, and start nothing any more. A command of ours on the machine is ended by `leave`."""
        with self._lock:
            self._cancelled = True
            if self._process is not None:
                self._process.kill()

    def _start(self, command: str) -> subprocess.Popen[str]:
        with self._lock:
            if self._cancelled:
                raise HostFailed(f"host {self.host.name}: given up")
            try:
                self._process = subprocess.Popen(
                    [*arguments(self.host), command],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    errors="replace",
                    start_new_session=True,  # Ctrl-C is ours to handle
                )
            except FileNotFoundError:
                raise HostFailed("there is no ssh on this machine; install an OpenSSH client") from None
            return self._process


def _collect(lines: Iterable[str], into: list[str]) -> None:
    into.extend(lines)
