"""How a machine gets what all of a fleet share: from `up --fleet`, or from files of `fleet render`."""

from __future__ import annotations

import json
import stat
from pathlib import Path

from cluster.errors import ConfigError
from cluster.fleet.folder import Folder

OTHERS = stat.S_IRWXG | stat.S_IRWXO


def take_secrets(folder: Folder, text: str) -> None:
    """Write what `up --fleet` sends. Raises ConfigError."""
    try:
        given = json.loads(text)
        folder.put_secrets(str(given["token"]), bytes.fromhex(given["key"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"no token and key on stdin ({error}); `moemesh up --fleet` sends them") from None


def copy_secrets(folder: Folder, source: Path) -> None:
    """Those that `fleet render` has made. Raises ConfigError if they are not there, or not secret."""
    given = Folder(source)
    if not given.has_secrets():
        raise ConfigError(f"{source} has no token and cluster.key; `moemesh fleet render` makes them")
    for file in (given.token, given.key):
        if file.stat().st_mode & OTHERS:
            raise ConfigError(f"others than its owner can read {file}; chmod 600 it, or render new secrets")
    folder.put_secrets(given.token.read_text(), given.cluster_key())
