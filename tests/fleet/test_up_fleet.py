"""`moemesh up --fleet` over real sshd, on six hosts with addresses of their own and different CPUs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from fleet import sshd
from fleet.bed import Bed, Wanted, bed
from fleet.hosts import Host
from fleet.links import Link
from support.debian import CannotRun

pytestmark = [pytest.mark.fleet, pytest.mark.timeout(600)]

HOSTS = {"a": "", "b": "", "c": "avx2", "d": "avx2", "e": "portable", "f": "portable"}
PROMPT, TOKENS = "To be, or not to be", "16"
LIMIT_S = 400.0


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


@pytest.fixture(scope="module")
def fleet(hosts_can_be_made: None) -> Iterator[Fleet]:
    with bed([Wanted(name, isa) for name, isa in HOSTS.items()]) as made:
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
        entries = [_entry(host) for host in made.hosts.values()]
        entries[0]["role"] = "hub"
        values = {"name": "bed", "ssh": ssh, "hosts": entries, "gateway": {"insecure": True}}
        fleet = Fleet(made, made.hosts["a"], made.folder / "fleet.yaml", values)
        fleet.write()
        yield fleet


def _entry(host: Host) -> dict[str, Any]:
    return {
        "name": host.name,
        "address": host.address,
        "role": "edge",
        "memory_bytes": "64MiB",
        "cores": 1,
        "storage": str(host.spec.folder / "storage"),
        "venv": sys.prefix,
    }


def test_from_nothing_to_the_same_tokens_and_to_nothing_again(fleet: Fleet) -> None:
    summary = fleet.moemesh("up", "--fleet", str(fleet.file))
    assert "error" not in summary, summary
    words = ("generate", PROMPT, "--max-tokens", TOKENS)
    served = fleet.moemesh(*words, "--address", summary["grpc"])
    print(f"six hosts by ssh: up after {summary['seconds']:.1f} s")
    assert served["token_ids"] == fleet.moemesh(*words, "--local")["token_ids"]
    assert fleet.moemesh("down", "--fleet", str(fleet.file))["hosts"] == len(HOSTS)
    assert not fleet.left()


def test_a_wrong_key_is_named_and_nothing_is_left(fleet: Fleet) -> None:
    entry = fleet.values["hosts"][2]
    entry["ssh"] = {"key": str(fleet.bed.folder / "other")}
    fleet.write()
    said = fleet.moemesh("up", "--fleet", str(fleet.file))["error"]["message"]
    del entry["ssh"]
    fleet.write()
    assert "host c " in said
    assert "refuses the key" in said
    assert not fleet.left()


def test_a_host_that_cannot_be_reached_is_named_and_nothing_is_left(fleet: Fleet) -> None:
    fleet.bed.part("d")
    said = fleet.moemesh("up", "--fleet", str(fleet.file))["error"]["message"]
    fleet.bed.connect("d", Link())
    assert "host d " in said
    assert "does not answer" in said
    assert not fleet.left()
