"""`moemesh doctor --fleet` over real sshd: links that are far, slow or cut, and a firewall."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.fleet.file import Ports
from fleet import sshd
from fleet.bed import Bed, Wanted, bed
from fleet.hosts import Host
from fleet.links import Link
from support.debian import CannotRun

pytestmark = [pytest.mark.fleet, pytest.mark.timeout(400)]

LIMIT_S = 300.0
DELAY_S = 0.01
SLOW_BYTES_PER_S = 1.5e6
NODE, BLOBS = Ports.node, Ports.blobs


class Fleet:
    """Hosts a to d with sshd, asked from host a."""

    def __init__(self, made: Bed, key: Path) -> None:
        self.bed = made
        self._file = made.folder / "fleet.yaml"
        entries = [_entry(host) for host in made.hosts.values()]
        entries[0]["role"] = "hub"
        options = ["StrictHostKeyChecking=no", "ConnectTimeout=3"]
        ssh = {"user": "root", "key": str(key), "options": options}
        values = {"name": "bed", "ssh": ssh, "hosts": entries, "gateway": {"insecure": True}}
        self._file.write_text(yaml.safe_dump(values))

    def doctor(self, *options: str) -> str:
        command = [sys.executable, "-m", "cluster.cli.app", "doctor", "--fleet", str(self._file), *options]
        return self.bed.hosts["a"].run(command, LIMIT_S, check=False)

    def left(self) -> list[str]:
        """Processes on the hosts other than sshd."""
        found = [one.name() for host in self.bed.hosts.values() for one in host.processes()]
        return [name for name in found if not name.startswith("sshd")]


def _entry(host: Host) -> dict[str, Any]:
    storage = host.spec.folder / "storage"
    return {
        "name": host.name,
        "address": host.address,
        "role": "edge",
        "memory_bytes": "64MiB",
        "cores": 1,
        "storage": str(storage),
        "venv": sys.prefix,
    }


@pytest.fixture(scope="module")
def fleet(hosts_can_be_made: None) -> Iterator[Fleet]:
    with bed([Wanted(name) for name in "abcd"]) as made:
        try:
            sshd.find_sshd()
        except CannotRun as reason:
            pytest.skip(str(reason))
        key = made.folder / "key"
        public = sshd.new_key(key)
        for host in made.hosts.values():
            sshd.serve(host, allowed=public)
        yield Fleet(made, key)


def test_links_that_are_far_slow_and_cut_are_named_with_their_fix(fleet: Fleet) -> None:
    for link, one, other in (
        (Link(delay_s=DELAY_S), "a", "b"),
        (Link(bytes_per_s=SLOW_BYTES_PER_S), "a", "c"),
        (Link(cut=True), "b", "d"),
    ):
        fleet.bed.link(one, other, link)
        fleet.bed.link(other, one, link)
    said = fleet.doctor("--json")
    found = json.loads(said)
    wrong = {(one["host"], one["name"]): one for one in found["findings"] if one["good"] is False}
    far, slow = wrong.pop(("a ↔ b", "latency")), wrong.pop(("a → c", "bandwidth"))
    assert "cable" in far["fix"]
    assert "wifi" in slow["fix"]
    for host, other in (("b", "d"), ("d", "b")):
        text = wrong.pop((host, "reached"))["text"]
        assert text.startswith(f"nothing from {other} gets through: no answer at any port")
    assert not any(name == "reached" for _, name in wrong)
    assert not found["ok"]
    links = {(one["source"], one["target"]): one for one in found["links"]}
    assert len(links) == 12
    assert links["a", "b"]["median_s"] >= 2 * DELAY_S
    assert links["c", "a"]["bytes_per_s"] <= 1.2 * SLOW_BYTES_PER_S
    assert links["b", "d"]["median_s"] is None
    assert not fleet.left()


def test_a_firewall_is_told_from_a_cut_link(fleet: Fleet) -> None:
    fleet.bed.link_all(Link())
    for source in "ac":
        fleet.bed.link(source, "b", Link(closed=(NODE, BLOBS)))
    said = fleet.doctor()
    fleet.bed.link_all(Link())
    text = " ".join(said.split())
    assert f"b ✗ reached from a, c: no answer at ports.node {NODE}, ports.blobs {BLOBS}; a firewall" in text
    assert f"to any port {NODE}:{BLOBS}`, and so for c" in text
    assert text.count("reached") == 1
    assert "bandwidth, Mbit/s from \\ to a b c d" in text
    assert not fleet.left()
