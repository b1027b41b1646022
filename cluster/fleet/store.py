"""Where the head's Ray keeps what it knows of a fleet, so that a head that was killed goes on with it.

On the head's own disk (Ray's embedded RocksDB), or in a Redis, which survives that disk. What is kept belongs
to the token of the fleet: with a new one Ray starts from nothing.
"""

from __future__ import annotations

import hashlib
import logging
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cluster.errors import ConfigError
from cluster.fleet.file import FleetFile, Redis
from cluster.fleet.folder import Folder

log = logging.getLogger(__name__)

FORGET_S = 20.0
_FORGET = """
import sys
from ray._private.gcs_utils import cleanup_redis_storage
host, port, namespace, username = sys.argv[1:]
cleanup_redis_storage(host, int(port), sys.stdin.read(), False, namespace, username)
"""


@dataclass(frozen=True)
class Store:
    """What the head's `ray start` is told of it. variables: of its environment; arguments: of its command."""

    variables: Mapping[str, str] = field(default_factory=dict)
    arguments: Sequence[str] = ()


def store_of(fleet: FleetFile, folder: Folder) -> Store:
    """Of the head. Raises ConfigError for a password that cannot be read."""
    redis = fleet.redis
    if not redis.address:
        return Store({"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": str(folder.ray)})
    variables = {
        "RAY_REDIS_ADDRESS": redis.address,
        "RAY_external_storage_namespace": namespace(fleet.name, folder.token.read_text()),
    }
    arguments = ["--redis-username", redis.username] if redis.username else []
    if redis.password_file:
        arguments += ["--redis-password", _password(redis)]
    return Store(variables, arguments)


def namespace(name: str, token: str) -> str:
    """Of one fleet, from its first start to its end, among all that share a Redis."""
    return f"{name}-{hashlib.sha256(token.encode()).hexdigest()[:12]}"


def forget(fleet: FleetFile, token: str) -> None:
    """Remove what is kept in Redis; what cannot be removed is of no use to anybody, and only logged."""
    redis = fleet.redis
    if not (redis.address and token):
        return
    host, _, port = redis.address.rpartition(":")
    words = [host, port, namespace(fleet.name, token), redis.username]
    try:
        subprocess.run(
            [sys.executable, "-c", _FORGET, *words],
            input=_password(redis) if redis.password_file else "",
            text=True,
            capture_output=True,
            timeout=FORGET_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError, ConfigError) as error:
        log.warning("what Ray keeps at %s was not removed: %s", redis.address, error)


def _password(redis: Redis) -> str:
    try:
        return Path(redis.password_file).read_text().strip()
    except OSError as error:
        raise ConfigError(
            f"password of Redis cannot be read from {redis.password_file} ({error.strerror}); correct "
            "redis.password_file in the fleet file, and who may read it"
        ) from None
