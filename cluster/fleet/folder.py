"""The state folder: what `up` has started, so that `status` and `down` find it, and the logs of the roles.

state.json   written before the first process starts and after every step, removed by `down`
token        Ray's authentication token, readable by the owner alone
cluster.key  what our processes show each other that they know, likewise
ray/         what the Ray of a fleet's head knows, for a head that comes back; of no use with another token
epoch        the last epoch of a controller, so that the next one is higher
orders       what operators asked of it (drained nodes, tiers), for the next one
generations  on a fleet's head: which model is active, and which one else has roles
spare/       logs, epoch and orders of the second generation of roles, while there is one
at-work      which command has the folder for itself, while it has
logs/        one file a role; kept after a failed start, because the error points there
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cluster.dispatch.handshake import split_address
from cluster.errors import AlreadyUp, ClusterError, NotUp
from cluster.fleet import processes
from cluster.fleet.processes import Mark

RECORD_VERSION = 1
SPARE, GENERATIONS = "spare", "generations"
EPOCH, LOGS, ORDERS, TOKEN, KEY, RAY = "epoch", "logs", "orders", "token", "cluster.key", "ray"
NUMBERS = (0, 1)
"""Of generations: they take turns."""


@dataclass(frozen=True)
class Entrance:
    """Where a gateway listens, host:port. http: "" where it offers none."""

    grpc: str
    http: str = ""


@dataclass(frozen=True)
class Record:
    """state.json. Addresses are host:port, "" while unknown.

    phase: "joined" is a machine of a fleet, whose roles the head's record knows.
    owner: the command that is starting something, or, of a fleet, stays with it.
    processes: every process that was started; the first is the parent of Ray's.
    temp: Ray's temporary folder, removed with the cluster.
    address: of this machine in a fleet, whose gateways may be on others; "" where there is one machine only.
    grpc, http: of the first gateway; further: of the others.
    """

    phase: Literal["starting", "joined", "up"]
    owner: Mark
    processes: tuple[Mark, ...] = ()
    temp: str = ""
    ray: str = ""
    controller: str = ""
    grpc: str = ""
    http: str = ""
    further: tuple[Entrance, ...] = ()
    model: str = ""
    variant: str = ""
    address: str = ""
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    version: int = RECORD_VERSION

    @property
    def http_url(self) -> str:
        """Of the first gateway, "" where no HTTP is offered."""
        return self._url(self.http)

    @property
    def entrances(self) -> tuple[Entrance, ...]:
        """Of all gateways; none while unknown."""
        return (Entrance(self.grpc, self.http), *self.further) if self.grpc else ()

    def gateways(self) -> list[dict[str, str]]:
        """As commands print them: grpc, and the URL of http."""
        return [{"grpc": one.grpc, "http": self._url(one.http)} for one in self.entrances]

    def _url(self, http: str) -> str:
        scheme = "https" if self.config.get("gateway", {}).get("tls") else "http"
        return f"{scheme}://{http}" if http else ""

    @property
    def own_addresses(self) -> tuple[str, ...]:
        """Where processes of this machine listen."""
        gateways = [address for one in self.entrances for address in (one.grpc, one.http)]
        known = tuple(filter(None, (self.controller, *gateways)))
        if not self.address:
            return known
        return tuple(one for one in known if split_address(one)[0] == self.address)

    def alive(self) -> bool:
        """Whether anything of it runs."""
        return any(processes.alive(one) for one in self.processes) or (
            self.phase == "starting" and processes.alive(self.owner)
        )


class Folder:
    """$MOEMESH_STATE_DIR, else $XDG_STATE_HOME/moemesh, else ~/.local/state/moemesh; made when needed.

    logs, epoch and orders are a generation's own (cluster/fleet/generations.py), all else is of the machine.
    """

    def __init__(self, path: Path | None = None, generation: int = 0) -> None:
        self.path, self.generation = path or _from_environment(), generation
        own = own_folder(self.path, generation)
        self.logs = own / LOGS
        self.token = self.path / TOKEN
        self.key = self.path / KEY
        self.ray = self.path / RAY
        self.epoch = own / EPOCH
        self.orders = own / ORDERS
        self.generations = self.path / GENERATIONS
        self._state = self.path / "state.json"
        self._at_work = self.path / "at-work"

    def read(self) -> Record | None:
        """None if nothing was started. Raises ClusterError for a record that cannot be understood."""
        try:
            values = json.loads(self._state.read_text())
            if values["version"] != RECORD_VERSION:
                raise ValueError(f"version {values['version']}")
            values["owner"] = Mark(*values["owner"])
            values["processes"] = tuple(Mark(*one) for one in values["processes"])
            values["further"] = tuple(Entrance(**one) for one in values.get("further", ()))
            return Record(**values)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise ClusterError(
                f"{self._state} is not readable ({error}); end what runs by hand, then delete the file"
            ) from error

    def require(self) -> Record:
        """The record of a cluster that is up. Raises NotUp."""
        record = self.read()
        if record is None or not record.alive():
            raise NotUp("no cluster is up; start one with `moemesh up`")
        if record.phase == "joined":
            raise NotUp("this machine is part of a fleet that is not served from here; ask at its head")
        if record.phase != "up":
            raise NotUp(f"a cluster is being started by process {record.owner.pid}; wait for it")
        return record

    def write(self, record: Record) -> None:
        """Replace state.json at once or not at all."""
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        draft = self._state.with_suffix(".tmp")
        draft.write_text(json.dumps(dataclasses.asdict(record), indent=1))
        draft.replace(self._state)

    def write_secrets(self) -> None:
        """New ones."""
        self.put_secrets(secrets.token_hex(32), secrets.token_bytes(32))

    def put_secrets(self, token: str, key: bytes) -> None:
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self.token_text() != token:
            shutil.rmtree(self.ray, ignore_errors=True)
            self.generations.unlink(missing_ok=True)
        with open(self.token, "w", opener=_owner_only) as file:
            file.write(token)
        with open(self.key, "wb", opener=_owner_only) as file:
            file.write(key)

    def has_secrets(self) -> bool:
        return self.token.exists() and self.key.exists()

    def token_text(self) -> str:
        """ "" where there is none."""
        try:
            return self.token.read_text()
        except FileNotFoundError:
            return ""

    def cluster_key(self) -> bytes:
        """b"" where no cluster is up."""
        try:
            return self.key.read_bytes()
        except FileNotFoundError:
            return b""

    def clear_logs(self) -> None:
        for number in NUMBERS:
            shutil.rmtree(own_folder(self.path, number) / LOGS, ignore_errors=True)
        self.logs.mkdir(parents=True)

    def forget(self, keep_logs: bool = False, for_good: bool = True) -> None:
        """Remove what a cluster wrote here; unless for good only what says that it runs."""
        self._state.unlink(missing_ok=True)
        self._at_work.unlink(missing_ok=True)
        if for_good:
            for file in (self.token, self.key, self.generations):
                file.unlink(missing_ok=True)
            shutil.rmtree(self.ray, ignore_errors=True)
        for number in NUMBERS:
            own = own_folder(self.path, number)
            if for_good:
                forget_controller(own)
            if not keep_logs:
                shutil.rmtree(own / LOGS, ignore_errors=True)
        with suppress(OSError):  # it is not there, or has logs
            (self.path / SPARE).rmdir()

    def at_work(self) -> Mark | None:
        """The process that has the folder for itself (`locked`), if one has."""
        try:
            found = Mark(*json.loads(self._at_work.read_text()))
        except (FileNotFoundError, ValueError, TypeError):  # nobody, or one that begins this moment
            return None
        return found if processes.alive(found) else None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """One `up` or `down` at a time, or AlreadyUp. The lock of a killed process is gone."""
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(self.path, os.O_RDONLY)  # the folder itself: no lock file to leave behind
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise AlreadyUp(
                f"another command is at work in {self.path}; wait until it has finished"
            ) from None
        try:
            self._at_work.write_text(json.dumps(processes.mark(os.getpid())))
            yield
        finally:
            self._at_work.unlink(missing_ok=True)
            with suppress(OSError):  # not empty: something was started
                self.path.rmdir()
            os.close(handle)


def own_folder(path: Path, generation: int) -> Path:
    """Where a generation of roles has its logs, and on the head its controller's epoch and orders."""
    return path / SPARE if generation else path


def forget_controller(own: Path) -> None:
    """What a generation's controller has kept: one that comes after it begins anew."""
    for name in (EPOCH, ORDERS):
        (own / name).unlink(missing_ok=True)


def _from_environment() -> Path:
    if path := os.environ.get("MOEMESH_STATE_DIR"):
        return Path(path)
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "moemesh"


def _owner_only(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
