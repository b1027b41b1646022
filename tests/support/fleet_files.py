"""Fleet files of a test's own; nothing of them runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from cluster.fleet.file import FleetFile, load

Values = dict[str, Any]
HUB: Values = {"name": "hub", "address": "10.0.0.1", "role": "hub"}
PI: Values = {"name": "pi", "address": "10.0.0.2"}
DOOR: Values = {"name": "door", "address": "10.0.0.3", "role": "hub", "memory_bytes": 0}
"""Its gateways and routers have no expert node beside them."""


def fleet_of(folder: Path, *hosts: Values, **more: Any) -> FleetFile:
    """A fleet of small edges, but for what `hosts` say, whose storage is below `folder`, where its file is.
    more: of the whole file."""
    entry = {"role": "edge", "memory_bytes": "64MiB", "cores": 1, "storage": str(folder / "storage")}
    values = {"name": "f", "hosts": [entry | host for host in hosts], "gateway": {"insecure": True}}
    file = folder / "fleet.yaml"
    file.write_text(yaml.safe_dump(values | more))
    return load(file)
