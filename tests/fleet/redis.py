"""A real redis-server for one test, with a password, on loopback."""

from __future__ import annotations

import secrets
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from cluster.fleet import ports
from fleet.programs import REDIS, folder_with

HOST = "127.0.0.1"
UP_S, END_S = 10.0, 10.0


@dataclass(frozen=True)
class Redis:
    """port: on loopback. password: in password_file, too."""

    port: int
    password: str
    password_file: Path

    @property
    def keys(self) -> int:
        """How many it has."""
        with socket.create_connection((HOST, self.port), 1.0) as link:
            link.sendall(f"AUTH {self.password}\r\nDBSIZE\r\n".encode())
            lines = link.makefile("rb")
            assert lines.readline() == b"+OK\r\n"
            return int(lines.readline()[1:])


@contextmanager
def redis(folder: Path) -> Iterator[Redis]:
    """folder: for its files; made. Raises CannotRun where there is no redis-server."""
    program = folder_with("redis-server", REDIS) / "redis-server"
    folder.mkdir()
    made = Redis(ports.free_port(HOST), secrets.token_hex(16), folder / "password")
    made.password_file.write_text(made.password)
    given = {"port": made.port, "bind": HOST, "requirepass": made.password, "dir": folder, "save": '""'}
    config = folder / "redis.conf"
    config.write_text("".join(f"{name} {value}\n" for name, value in given.items()))
    with open(folder / "log", "w") as log:
        process = subprocess.Popen([program, config], stdout=log, stderr=log)
    try:
        _wait(made, folder / "log")
        yield made
    finally:
        process.terminate()
        process.wait(END_S)


def _wait(made: Redis, log: Path) -> None:
    deadline = time.monotonic() + UP_S
    while time.monotonic() < deadline:
        with suppress(OSError):
            assert made.keys == 0
            return
        time.sleep(0.05)
    raise AssertionError(f"redis-server did not start: {log.read_text()}")
