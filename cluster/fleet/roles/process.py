"""What every role's process has in common: where its controller is, where it logs."""

from __future__ import annotations

import faulthandler
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path

from cluster.config import LogFormat, TracingConfig
from cluster.fleet.roles import cores
from cluster.fleet.roles.logs import formatter
from kernels import warm

LOGGERS = ("cluster", "uvicorn", "opentelemetry")
MAX_LOG_BYTES = 64 << 20
"""A log that a long-lived process grew beyond this is started afresh when the process restarts."""


@dataclass(frozen=True)
class Place:
    """name: unique in the cluster, also the log's name; controller: host:port; library: its folder, "" for
    the bundled one; variant: of the experts; logs: folder, written in log_format. host, port: where nodes and
    routers listen, 0 for any port; a gateway has a configuration for that. nice: see cores.share."""

    name: str
    controller: str
    library: str
    variant: str
    logs: str
    log_format: LogFormat = LogFormat.text
    tracing: TracingConfig = field(default_factory=TracingConfig)
    host: str = "127.0.0.1"
    port: int = 0
    nice: int | None = None


def begin(place: Place) -> int:
    """First of all that a role's process does. Returns how often the role has started before since `up`.

    Counted before its log tells its number: whoever ends it by that finds its start counted."""
    before = count_restarts(place.logs, place.name)
    log_to_file(place.logs, place.name, place.log_format)
    cores.share(place.nice)
    return before


def log_to_file(logs: str, name: str, kind: LogFormat = LogFormat.text) -> None:
    """Send this process's log, and the traces of a crash, to `logs`/`name`.log. Prompts are never logged."""
    file = _folder(logs) / f"{name}.log"
    if file.exists() and file.stat().st_size > MAX_LOG_BYTES:
        file.unlink()
    stream = open(file, "a")  # noqa: SIM115 - held until the process ends
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter(kind, name))
    for logger in map(logging.getLogger, LOGGERS):
        logger.handlers[:] = [handler]
        logger.setLevel(logging.INFO if logger.name == "cluster" else logging.WARNING)
        logger.propagate = False
    faulthandler.enable(stream)
    logging.getLogger("cluster").info("%s starts as process %d", name, os.getpid())


def load_kernels() -> None:
    """Every kernel, from the cache that was warmed before; from here on this process compiles nothing."""
    warmth = warm.compile_all()
    logging.getLogger(__name__).info(
        "kernels: %d variants from the cache, %d compiled", warmth.loaded, warmth.compiled
    )


def count_restarts(logs: str, name: str) -> int:
    """How often this role has started before since `up`; call once a process."""
    with open(_folder(logs) / f"{name}.starts", "a+") as file:
        file.seek(0)
        before = len(file.readlines())
        file.write(f"{os.getpid()}\n")
    return before


def _folder(logs: str) -> Path:
    """A machine that joins again has cleared its logs."""
    folder = Path(logs)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
