"""Ports of a host that the others must reach, and how people write lists of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from cluster.fleet.file import FleetFile, Host

SEVERAL = 8
"""Of longer ranges the first and the last port stand for all: one rule of a firewall opens a range."""


def wanted_ports(fleet: FleetFile, host: Host) -> dict[int, str]:
    """Keys of the fleet file by port."""
    found: dict[int, str] = {}
    for use in fleet.ports_of(host):
        if use.key == "ssh.port" or (use.key.startswith("gateway.") and not _offered(fleet, host)):
            continue
        several = range(use.first, use.last + 1)
        found |= dict.fromkeys(several if use.count <= SEVERAL else (use.first, use.last), use.key)
    return found


def _offered(fleet: FleetFile, host: Host) -> bool:
    """Whether its gateways listen where other machines might reach them."""
    return fleet.gateway_of(host).host in (host.address, "0.0.0.0", "::")


def named(keys: Mapping[int, str], ports: Iterable[int]) -> str:
    """ "ports.ray 6379 6380, ports.node 8480"."""
    found: dict[str, list[int]] = {}
    for port in ports:
        found.setdefault(keys[port], []).append(port)
    return ", ".join(f"{key} {' '.join(map(str, group))}" for key, group in found.items())


def ranges(fleet: FleetFile, host: Host, ports: Iterable[int]) -> str:
    """As firewalls take them: "6379:6385,8480". A range stands there whole where its ends do."""
    given = set(ports)
    whole = set(given)
    for use in fleet.ports_of(host):
        if {use.first, use.last} <= given:
            whole |= set(range(use.first, use.last + 1))
    return ",".join(f"{first}:{last}" if last > first else str(first) for first, last in _runs(whole))


def _runs(ports: Iterable[int]) -> Iterator[tuple[int, int]]:
    """First and last of ports that follow one another."""
    first = last = None
    for port in sorted(ports):
        if first is None or last is None or port != last + 1:
            if first is not None and last is not None:
                yield first, last
            first = port
        last = port
    if first is not None and last is not None:
        yield first, last
