"""Fleets whose machines are loopback addresses of this one, each with a folder and ports of its own, reached
by an `ssh` that runs the command here."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cluster.fleet import ports
from cluster.fleet.file import RAY_PORTS, WORKER_PORTS
from cluster.fleet.folder import Folder
from support.clusters import ROOT, Moemesh

SSH = """#!/bin/sh
# ssh OPTIONS -- ADDRESS COMMAND, without the network.
while [ "$1" != "--" ]; do shift; done
address=${2#*@}
for away in $FLEET_AWAY; do
    [ "$away" = "$address" ] && echo "ssh: connect to host $address port 22: No route to host" >&2 && exit 255
done
for strange in $FLEET_STRANGE; do
    [ "$strange" = "$address" ] && echo "$address: Permission denied (publickey)." >&2 && exit 255
done
exec sh -c "$3"
"""
MOEMESH = """#!/bin/sh
exec {python} -m cluster.cli.app "$@"
"""
ADDRESSES = ("127.0.0.2", "127.0.0.3", "127.0.0.4")
"""Not 127.0.0.1, which Ray replaces by an address that others can reach."""

FIRST_PORT, STEP = 20_000, 200
"""Below what the kernel gives out by itself."""

SPARE = 10
"""So far above the first set of a host's own ports is the second, within its step."""


@dataclass(frozen=True)
class LoopbackFleet:
    """moemesh: the operator's command. file: the fleet file; values: what is in it."""

    moemesh: Moemesh
    file: Path
    root: Path
    values: dict[str, Any]

    def folder(self, name: str) -> Folder:
        return Folder(self.root / name / "state")

    def write(self) -> None:
        self.file.write_text(yaml.safe_dump(self.values))


def loopback_fleet(root: Path, hosts: dict[str, dict[str, Any]], **fleet: Any) -> LoopbackFleet:
    """hosts: their entries by name, without what all have. The first one is the head."""
    for name, text in (("bin/ssh", SSH), ("venv/bin/moemesh", MOEMESH.format(python=sys.executable))):
        script = root / name
        script.parent.mkdir(parents=True)
        script.write_text(text)
        script.chmod(0o755)
    moemesh = Moemesh(root / "operator")
    moemesh.environment["PATH"] = f"{root / 'bin'}:{os.environ['PATH']}"
    moemesh.environment["PYTHONPATH"] = str(ROOT)
    entries = [
        {
            "name": name,
            "address": address,
            "memory_bytes": "64MiB",
            "cores": 1,
            "storage": str(root / name),
            "venv": str(root / "venv"),
            "ports": own_ports(address, number),
            **more,
        }
        for number, (address, (name, more)) in enumerate(zip(ADDRESSES, hosts.items(), strict=False))
    ]
    made = LoopbackFleet(moemesh, root / "fleet.yaml", root, {"name": "loop", "hosts": entries, **fleet})
    made.write()
    return made


def own_ports(address: str, number: int) -> dict[str, int]:
    """Ray listens on every address of the machine: no two of its nodes may share a port."""
    for first in range(FIRST_PORT + number * STEP, 32_000, STEP * len(ADDRESSES)):
        needed = range(first, first + RAY_PORTS + WORKER_PORTS + 2 * SPARE)
        if not any(ports.problem("0.0.0.0", port) for port in needed):
            workers = first + RAY_PORTS
            own = workers + WORKER_PORTS
            return {
                "ray": first,
                "workers": workers,
                "controller": own,
                "node": own + 1,
                "blobs": own + 2,
                "routers": own + 3,
                "spare": SPARE,
            }
    raise AssertionError(f"no free ports for {address}")
