"""A fleet over hosts of the test-bed with real sshd, and an operator who runs `moemesh` on one of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from fleet import sshd
from fleet.bed import Bed, Wanted, bed
from fleet.hosts import Host
from support.debian import CannotRun

LIMIT_S = 500.0


@dataclass(frozen=True)
class Fleet:
    """operator: the host from which it is started. file: the fleet file, made of `values`."""

    bed: Bed
    operator: Host
    file: Path
    values: dict[str, Any]

    def write(self) -> None:
        self.file.write_text(yaml.safe_dump(self.values))

    def moemesh(self, *words: str) -> Any:
        """What a command answers, or its error, as an object."""
        command = [sys.executable, "-m", "cluster.cli.app", *words, "--json"]
        said = self.operator.run(command, LIMIT_S, check=False)
        assert said, f"moemesh {' '.join(words)} said nothing"
        return json.loads(said)

    def left(self) -> list[str]:
        """Processes on the hosts other than sshd."""
        found = [one.name() for host in self.bed.hosts.values() for one in host.processes()]
        return [name for name in found if name != "sshd"]


@contextmanager
def operated(hosts: Mapping[str, str], hubs: int = 1, **values: Any) -> Iterator[Fleet]:
    """hosts: the instruction set of each, "" for this machine's best. The first `hubs` of them are hubs, the
    first is the head and the operator's. values: of the fleet file, besides. Skips where there is no sshd."""
    with bed([Wanted(name, isa) for name, isa in hosts.items()]) as made:
        try:
            sshd.find_sshd()
        except CannotRun as reason:
            pytest.skip(str(reason))
        key = made.folder / "key"
        public = sshd.new_key(key)
        sshd.new_key(made.folder / "other")
        for host in made.hosts.values():
            sshd.serve(host, allowed=public)
        ssh = {"user": "root", "key": str(key), "options": ["StrictHostKeyChecking=no", "ConnectTimeout=3"]}
        entries = [
            _entry(host, "hub" if number < hubs else "edge")
            for number, host in enumerate(made.hosts.values())
        ]
        file = {"name": "bed", "ssh": ssh, "hosts": entries, "gateway": {"insecure": True}, **values}
        first = next(iter(made.hosts.values()))
        fleet = Fleet(made, first, made.folder / "fleet.yaml", file)
        fleet.write()
        yield fleet


def _entry(host: Host, role: str) -> dict[str, Any]:
    return {
        "name": host.name,
        "address": host.address,
        "role": role,
        "memory_bytes": "64MiB",
        "cores": 1,
        "storage": str(host.spec.folder / "storage"),
        "venv": sys.prefix,
    }
