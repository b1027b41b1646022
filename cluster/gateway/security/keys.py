"""API keys: made, kept as hashes in a JSON file, found again in constant time.

A key is `mm_ID_SECRET`. The id is public: it finds the record and stands in logs. The secret has 256 random
bits, so one round of SHA-256 keeps it as safe as a slow hash keeps a password.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
import os
import re
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from cluster.errors import ConfigError, Unauthenticated

VERSION = 1
PREFIX = "mm"
NOBODY = "0" * 64
_KEY = re.compile(rf"{PREFIX}_([0-9a-f]{{8}})_([\w-]{{43}})", re.ASCII)
REFUSED = "the API key is not known; send a valid one as `authorization: Bearer mm_…`"


class Scope(StrEnum):
    """What a key is good for."""

    infer = "infer"
    observe = "observe"
    admin = "admin"


@dataclass(frozen=True)
class Key:
    """One record of the file. hash: SHA-256 of the secret, hex; created, revoked: ISO 8601, UTC; "": not.

    requests_per_minute, concurrent: 0 is no limit.
    """

    id: str
    name: str
    hash: str
    scopes: tuple[Scope, ...]
    created: str
    revoked: str = ""
    requests_per_minute: int = 0
    concurrent: int = 0

    def __post_init__(self) -> None:
        if self.requests_per_minute < 0 or self.concurrent < 0:
            raise ConfigError(f"key {self.id}: limits must be 0 (none) or more")
        if not self.scopes:
            raise ConfigError(f"key {self.id} has no scope; give it one of {', '.join(Scope)}")


def digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def create(
    name: str, scopes: Iterable[Scope], created: str, requests_per_minute: int = 0, concurrent: int = 0
) -> tuple[str, Key]:
    """A new key as its owner gets it, once, and the record of it."""
    identity, secret = secrets.token_hex(4), secrets.token_urlsafe(32)
    record = Key(
        identity,
        name,
        digest(secret),
        tuple(scopes),
        created,
        requests_per_minute=requests_per_minute,
        concurrent=concurrent,
    )
    return f"{PREFIX}_{identity}_{secret}", record


def find(keys: Sequence[Key], presented: str) -> Key:
    """The record of a presented key. Raises Unauthenticated, with the same words whatever is wrong.

    The comparison takes the same time for a known id, an unknown and a revoked one.
    """
    match = _KEY.fullmatch(presented)
    if match is None:
        raise Unauthenticated(REFUSED)
    record = next((key for key in keys if key.id == match[1]), None)
    same = hmac.compare_digest(digest(match[2]), record.hash if record else NOBODY)
    if record is None or not same or record.revoked:
        raise Unauthenticated(REFUSED)
    return record


def read(path: Path) -> tuple[Key, ...]:
    """Raises ConfigError, naming the file, for one that is missing or not ours."""
    try:
        values = json.loads(path.read_text())
        if values["version"] != VERSION:
            raise ValueError(f"version {values['version']}")
        return tuple(_key(record) for record in values["keys"])
    except OSError as error:
        raise ConfigError(
            f"the keys in {path} cannot be read ({error.strerror}); make one with `moemesh keys create`"
        ) from None
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"{path} is no file of keys ({error!r}); restore it from a copy") from None


def _key(values: dict[str, Any]) -> Key:
    scopes = tuple(Scope(scope) for scope in values["scopes"])
    return Key(**{**values, "scopes": scopes})


def write(path: Path, keys: Iterable[Key]) -> None:
    """Replace the file at once or not at all; only its owner may read it."""
    records = [dataclasses.asdict(key) for key in keys]
    text = json.dumps({"version": VERSION, "keys": records}, indent=1)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f"{path.name}.new")
    with open(draft, "w", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(text + "\n")
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)
