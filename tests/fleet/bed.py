"""A fleet's hosts with a network between them, made for a test and gone with it.

    hosts.py   a host: Linux namespaces with an address, a name, processes and folders of its own
    switch.py  the network, in user space; links.py: what one direction of a link does to packets
    faults.py  what happens to hosts: frozen, slowed down, a full disk, another time
    sshd.py    real sshd on a host; sshfleet.py: a fleet over such hosts
    programs.py  other programs of Debian that a test needs
    served.py  a cluster over the hosts, without Ray, and streams through it (role.py, client.py)
    needs.py   why there can be no hosts on a machine, for tests that are then skipped
    delay.py   a measurement: throughput over far links

A short form runs with the other tests, all of it with `make test-fleet`. It takes root, for namespaces and
/dev/net/tun. Programs that are missing (sshd, libfaketime) are fetched as Debian packages, and not installed.
"""

from __future__ import annotations

import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import permutations
from pathlib import Path

from cluster.dispatch.handshake import KEY_VARIABLE
from fleet.hosts import ROOT, Host, Spec
from fleet.links import Link
from fleet.switch import DEVICE, Network, Port, network
from kernels.jit import ISA_VARIABLE

SUBNET, PREFIX = "10.91.0", 24
MTU = 1500


@dataclass(frozen=True)
class Wanted:
    """A host to make. isa: the instruction set of its kernels, "" for this machine's best. clock_s: its
    monotonic clock is ahead of the machine's by so many seconds. environment: of its processes, besides."""

    name: str
    isa: str = ""
    clock_s: int = 0
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Bed:
    """hosts: by name. folder: of the test, seen by all hosts; key: file of the cluster's key in it."""

    hosts: Mapping[str, Host]
    network: Network
    folder: Path
    key: Path

    def link(self, source: str, target: str, link: Link) -> None:
        """From one host to another, in that direction alone."""
        self.network.set(self.hosts[source].address, self.hosts[target].address, link)

    def link_all(self, link: Link) -> None:
        for source, target in permutations(self.hosts, 2):
            self.link(source, target, link)

    def connect(self, name: str, link: Link) -> None:
        """One host to all others, both ways."""
        for other in self.hosts:
            if other != name:
                self.link(name, other, link)
                self.link(other, name, link)

    def part(self, *names: str) -> None:
        """Cut these hosts off from all others, both ways."""
        for source, target in permutations(self.hosts, 2):
            if (source in names) != (target in names):
                self.link(source, target, Link(cut=True))


@contextmanager
def bed(wanted: Sequence[Wanted], seed: int = 0) -> Iterator[Bed]:
    """The hosts, connected by links without delay or loss. seed: of which packets links lose, and of jitter.

    Whatever still runs on them is killed at the end; no process, namespace, device, mount or file is left.
    """
    folder = Path(tempfile.mkdtemp(prefix="bed"))
    addresses = {each.name: f"{SUBNET}.{number}" for number, each in enumerate(wanted, 1)}
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        key = folder / "cluster.key"
        key.write_bytes(secrets.token_bytes(32))
        hosts = {}
        for each in wanted:
            host = hosts[each.name] = Host(_spec(each, addresses, folder, key))
            stack.callback(host.close)
            host.start()
        ports = [Port(host.address, host.pid) for host in hosts.values()]
        wires = stack.enter_context(network(ports, seed))
        for host in hosts.values():
            host.connect(DEVICE, PREFIX, MTU)
        yield Bed(hosts, wires, folder, key)


def _spec(wanted: Wanted, addresses: Mapping[str, str], folder: Path, key: Path) -> Spec:
    own = folder / wanted.name
    (own / "etc").mkdir(parents=True)
    names = "".join(f"{address} {name}\n" for name, address in addresses.items())
    (own / "etc" / "hosts").write_text(f"127.0.0.1 localhost\n{names}")
    shutil.copyfile("/etc/passwd", own / "etc" / "passwd")
    environment = {KEY_VARIABLE: str(key), "MOEMESH_STATE_DIR": str(own / "state")}
    if wanted.isa:
        environment[ISA_VARIABLE] = wanted.isa
    keep = [str(ROOT), sys.prefix, sys.base_prefix, str(folder)]
    if cache := os.environ.get("MOEMESH_CACHE_DIR"):
        keep.append(str(Path(cache).resolve()))
    return Spec(
        wanted.name,
        addresses[wanted.name],
        own,
        {**environment, **wanted.environment},
        keep=tuple(keep),
        clock_s=wanted.clock_s,
    )
