"""Ray of this machine as a child of our own: started, found ready, and ended with all its descendants.

It is the head of a cluster on this machine or of a fleet, or joins a fleet's head.

Ray is asked for as little as it can do: no dashboard, no log monitor, no autoscaler, no client server, and
on one machine only loopback. That takes `ray start` from 5.5 s to 3.0 s here and saves about 250 MB. To keep
its API server from starting at all would save 0.8 s more, but only by replacing a private method of Ray.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cluster.config import WireSecurity
from cluster.dispatch.handshake import KEY_VARIABLE, SECURITY_VARIABLE
from cluster.errors import StartFailed
from cluster.fleet import processes
from cluster.fleet.folder import Folder
from cluster.fleet.processes import Mark
from cluster.fleet.store import Store

HOST = "127.0.0.1"
LABEL = "moemesh-host"
"""Ray's label with the name of a fleet's machine. A machine that comes back is another node to Ray, with the
same label: actors are placed by that."""

SLOT = "moemesh_slot"
"""Custom resource: every actor of ours takes one, so that none lands on a Ray host that is not ours."""

SLOTS = 64
OBJECT_STORE_BYTES = 80 << 20
"""Just above Ray's minimum of 75 MiB: no tensor ever travels through the object store."""

RAYLET_GRACE_S = 3.0
HOURS_S = 24 * 3600
TEMP_PATH_MAX = 40
"""A Unix socket's path ends at 107 bytes; Ray appends /session_DATE_TIME_PID/sockets/plasma_store."""

_VARIABLES = {
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL": "minor",
    # Our own heartbeat decides about routing; Ray must not end processes when a peer was away a minute.
    "RAY_gcs_rpc_server_reconnect_timeout_s": str(HOURS_S),
    "RAY_health_check_period_ms": "60000",
    "RAY_health_check_timeout_ms": "60000",
    "RAY_health_check_failure_threshold": str(HOURS_S // 60),
    "RAY_worker_register_timeout_seconds": "180",
    # The node's own budget acts first.
    "RAY_memory_usage_threshold": "0.98",
    "RAY_enable_metrics_collection": "0",
    "RAY_START_HOOK": "cluster.fleet.raynode.trim",
    # Ray's default of 15 lets any client on the machine push the token path aside.
    "RAY_worker_niceness": "0",
    # Compute threads are ours; a BLAS pool in every process would only fight them.
    "OMP_NUM_THREADS": "1",
}


@dataclass(frozen=True)
class RayPlace:
    """What `ray start` is told, beside what is the same everywhere.

    address: of this machine, in numbers; Ray listens on every address unless it is 127.0.0.1. head: host:port
    of the GCS to join, "" to be the head. port: of the head's GCS, 0 for any. ports: Ray's options for its
    other ports. labels: of the machine. autoscaling: of a head that `ray up` starts, its configuration: Ray's
    monitor joins the machines that are in it. store: of the head of a fleet.
    """

    address: str = HOST
    head: str = ""
    port: int = 0
    ports: Mapping[str, int] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    autoscaling: str = ""
    store: Store = field(default_factory=Store)

    def arguments(self) -> list[str]:
        """Of `ray start`."""
        joined = ("--address", self.head)
        own = ("--head", "--port", str(self.port), "--include-dashboard", "false")
        found = [*(joined if self.head else own), "--node-ip-address", self.address]
        if self.autoscaling:
            found += ["--autoscaling-config", self.autoscaling]
        found += self.store.arguments
        for option, port in self.ports.items():
            found += [f"--{option}", str(port)]
        if self.labels:
            found += ["--labels", ",".join(f"{name}={value}" for name, value in self.labels.items())]
        return found


def environment(folder: Folder, security: WireSecurity, address: str = HOST) -> dict[str, str]:
    """Environment of `ray start` on the machine with this address, and of everything below it: actors inherit
    it from the raylet."""
    inherited = {
        key: value
        for key, value in os.environ.items()
        if key not in ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_NAMESPACE")
    }
    # With "1" Ray replaces 127.0.0.1 by an address that others can reach; with "0" nobody else may join.
    several = "0" if address == HOST else "1"
    source = str(Path(__file__).resolve().parents[2])
    paths = [source, *filter(None, [inherited.get("PYTHONPATH")])]
    return {
        **inherited,
        **_VARIABLES,
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": several,
        "RAY_AUTH_TOKEN_PATH": str(folder.token),
        KEY_VARIABLE: str(folder.key),
        SECURITY_VARIABLE: security.value,
        "PYTHONPATH": os.pathsep.join(paths),
    }


def trim(ray_params: Any, head: bool) -> None:
    """RAY_START_HOOK: `ray start` calls it before it starts anything; drops what no option turns off, and the
    monitor where it has no machines to start."""
    ray_params.ray_client_server_port = None
    ray_params.no_monitor = not ray_params.autoscaling_config


class RayNode:
    """Between `start` and the moment that `address` is known the caller may do other work.

    temp: its temporary folder; removed by `remove_files`.
    """

    def __init__(self, folder: Folder, security: WireSecurity, place: RayPlace | None = None) -> None:
        """place: None for a head that nobody joins."""
        self.temp = Path(_short_folder())
        self._place = place or RayPlace()
        self.environment = environment(folder, security, self._place.address)
        self.environment |= self._place.store.variables
        if self._place.autoscaling:
            self.environment |= {
                # There the monitor keeps which machines it has joined; what it kept in /tmp would still be
                # there for the next one, which would then join none of them.
                "RAY_TMPDIR": str(self.temp),
                # Its second version counts the head as one of the workers of `provider: local`: one of them
                # would never be joined.
                "RAY_enable_autoscaler_v2": "0",
            }
        self._log = folder.logs / "ray.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._started: list[Mark] = []

    def start(self) -> Mark:
        """Start the process in a session of its own, so that Ctrl-C reaches us and not it."""
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                self._command(),
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        found = processes.mark(self._process.pid)
        if found is None:
            raise StartFailed(f"Ray ended at once: {self.last_line()}; see {self._log}")
        self._started = [found]
        return found

    def _command(self) -> list[str]:
        return [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block"),
            *self._place.arguments(),
            *("--temp-dir", str(self.temp), "--include-log-monitor", "false", "--disable-usage-stats"),
            *("--object-store-memory", str(OBJECT_STORE_BYTES), "--resources", f'{{"{SLOT}": {SLOTS}}}'),
        ]

    def address(self) -> str | None:
        """host:port of the GCS once Ray is ready, None before. Raises StartFailed if it has ended."""
        self.check()
        file = self.temp / "ray_current_cluster"  # written by `ray start` as its last act
        return (file.read_text().strip() or None) if file.exists() else None

    def check(self) -> None:
        """Raises StartFailed if Ray has ended."""
        if self._process is not None and self._process.poll() is not None:
            raise StartFailed(f"Ray has ended; last words: {self.last_line()!r}; see {self._log}")

    def end(self) -> None:
        """End it and all its descendants, and reap it; idempotent."""
        if self._process is not None:
            end(self._started)
            self._process.wait()

    def last_line(self) -> str:
        return last_line(self._log)


def last_line(log: Path) -> str:
    """The last line of a log that says something, "" if there is none."""
    try:
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    except OSError:
        return ""
    return next((line for line in reversed(lines) if line), "")


def end(started: Iterable[Mark]) -> list[Mark]:
    """End the head and all its descendants; returns what is alive still, which should be nothing.

    started: the head first; if it has died by itself, its session still tells what belonged to it.

    The raylet first: on SIGTERM it takes its workers and agents along and is gone in 0.05 s; with SIGKILL
    they would be left to init. `ray start` itself needs more than ten seconds after SIGTERM, so it gets
    SIGKILL, and its own children go with it.
    """
    known = list(started)
    sessions = [one for leader in known[:1] for one in processes.session(leader)]
    everything = processes.family([*known, *sessions])
    processes.end([one for one in everything if processes.name(one) == "raylet"], RAYLET_GRACE_S)
    return processes.kill(everything)


def remove_files(temp: str) -> None:
    """Remove Ray's temporary folder; "" is nothing."""
    if temp:
        shutil.rmtree(temp, ignore_errors=True)


def driver_variables(all_variables: Mapping[str, str]) -> dict[str, str]:
    """What this process must carry to talk to the head."""
    return {key: value for key, value in all_variables.items() if key.startswith("RAY_")}


def _short_folder() -> str:
    base = tempfile.gettempdir()
    if len(base) + len("/moemesh-12345678") > TEMP_PATH_MAX:
        base = "/tmp"
    return tempfile.mkdtemp(prefix="moemesh-", dir=base)
