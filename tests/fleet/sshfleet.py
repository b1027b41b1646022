"""A fleet over hosts of a bed that are reached by real sshd, and commands on the first of them."""

from __future__ import annotations

import json
import os
import pwd
import sys
from collections.abc import Iterator, Mapping, Sequence
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

MIXED = {"a": "", "b": "", "c": "avx2", "d": "avx2", "e": "portable", "f": "portable"}
"""Instruction sets of six hosts, "" for this machine's best."""

PROMPT, TOKENS = "To be, or not to be", "16"
LIMIT_S = 500.0


@dataclass(frozen=True)
class Fleet:
    """operator: the host from which it is started, also its head. file: the fleet file, made of `values`."""

    bed: Bed
    operator: Host
    file: Path
    values: dict[str, Any]

    def write(self) -> None:
        self.file.write_text(yaml.safe_dump(self.values))

    def moemesh(self, *words: str) -> Any:
        """What a command answers, or its error, as an object."""
        said = self.run(sys.executable, "-m", "cluster.cli.app", *words, "--json")
        assert said, f"moemesh {' '.join(words)} said nothing"
        return json.loads(said)

    def run(self, *command: str) -> str:
        return self.operator.run(command, LIMIT_S, check=False)

    def left(self) -> list[str]:
        """Processes on the hosts other than sshd."""
        found = [one.name() for host in self.bed.hosts.values() for one in host.processes()]
        return [name for name in found if name != "sshd"]


@contextmanager
def fleet_over_ssh(
    hosts: Mapping[str, str], hubs: int = 1, programs: Sequence[Path] = (), **more: Any
) -> Iterator[Fleet]:
    """hosts: their instruction sets by name; the first `hubs` of them are hubs. programs: folders of what
    their PATH has besides. more: keys of the fleet file. The test is skipped where there is no sshd."""
    with bed([Wanted(name, isa) for name, isa in hosts.items()]) as made:
        try:
            sshd.find_sshd()
        except CannotRun as reason:
            pytest.skip(str(reason))
        key = made.folder / "key"
        public = sshd.new_key(key)
        sshd.new_key(made.folder / "other")
        for host in made.hosts.values():
            _add_to_path(host, programs)
            sshd.serve(host, allowed=public)
        ssh = {"user": "root", "key": str(key), "options": ["StrictHostKeyChecking=no", "ConnectTimeout=3"]}
        entries = [
            _entry(host, "hub" if number < hubs else "edge")
            for number, host in enumerate(made.hosts.values())
        ]
        values = {"name": "bed", "ssh": ssh, "hosts": entries, "gateway": {"insecure": True}, **more}
        operator = next(iter(made.hosts.values()))
        fleet = Fleet(made, operator, made.folder / "fleet.yaml", values)
        fleet.write()
        yield fleet


def _add_to_path(host: Host, folders: Sequence[Path]) -> None:
    """Of its processes, and of login shells, which begin with a PATH of their own, and in the home of the
    user database, whatever HOME is here."""
    added = "".join(f"{folder}:" for folder in folders)
    host.environment["PATH"] = added + host.environment["PATH"]
    home = pwd.getpwuid(os.getuid()).pw_dir
    host.run(["sh", "-c", f"echo 'PATH={added}$PATH' >> {home}/.bashrc"])


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
