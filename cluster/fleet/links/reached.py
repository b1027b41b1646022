"""What stands at the ports of a fleet's hosts, and what lies between them: firewalls, cut links."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cluster.fleet.file import FleetFile, Host
from cluster.fleet.findings import Advice
from cluster.fleet.links.listening import IDLE, OURS, RUNNING, TAKEN
from cluster.fleet.links.measuring import OPEN, REFUSED
from cluster.fleet.links.portlist import named, ranges, wanted_ports
from cluster.fleet.links.survey import Direction, Seat, Survey

KNOWN = (OURS, RUNNING, TAKEN, IDLE)


def own_ports(fleet: FleetFile, seat: Seat) -> Iterator[Advice]:
    """Ports of a host that the fleet could not use."""
    host, keys = seat.host, wanted_ports(fleet, seat.host)
    used = [port for port in keys if seat.ports.get(port) == TAKEN]
    if used:
        fix = "stop it (`sudo ss -ltnp` there names it), or choose other ports in the fleet file"
        yield Advice(host.name, "ports", f"something else uses {named(keys, used)}", False, fix)
    strange = sorted({seat.ports[port] for port in keys if seat.ports.get(port, OURS) not in KNOWN})
    if strange:
        text = f"nobody can listen on {host.address}: {', '.join(strange)}"
        fix = "correct its address in the fleet file, or choose ports above 1023"
        yield Advice(host.name, "ports", text, False, fix)


def reached(fleet: FleetFile, target: Seat, survey: Survey) -> Iterator[Advice]:
    """Lines about one host's ports; those who find the same share a line."""
    alike: dict[tuple[bool, tuple[int, ...], str], list[Host]] = {}
    for one in survey.directions:
        if one.target == target.host.name and (closed := _closed(fleet, target, one)):
            said = ", ".join(sorted({one.ports[port] for port in closed}))
            silent = not any(state in (OPEN, REFUSED) for state in one.ports.values())
            alike.setdefault((silent, closed, said), []).append(survey.seats[one.source].host)
    for (silent, ports, said), sources in alike.items():
        if silent:
            yield _cut(target.host, sources, said)
        else:
            yield _filtered(fleet, target.host, sources, ports, said)


def _closed(fleet: FleetFile, target: Seat, one: Direction) -> tuple[int, ...]:
    """Ports at which something listens, to which this direction does not lead."""
    listening = [port for port in wanted_ports(fleet, target.host) if target.ports.get(port) in KNOWN[:2]]
    return tuple(port for port in listening if one.ports.get(port, OPEN) != OPEN)


def _cut(target: Host, sources: Sequence[Host], said: str) -> Advice:
    names = _names(sources)
    text = f"nothing from {names} gets through: {said} at any port, SSH's included"
    fix = (
        f"try `ping {target.address}` on {sources[0].name}; check cable, switch and address, and that the "
        f"firewall of {target.name} lets {names} in"
    )
    return Advice(target.name, "reached", text, False, fix)


def _filtered(
    fleet: FleetFile, target: Host, sources: Sequence[Host], ports: Sequence[int], said: str
) -> Advice:
    text = f"from {_names(sources)}: {said} at {named(wanted_ports(fleet, target), ports)}"
    address, numbers = sources[0].address, ranges(fleet, target, ports)
    others = f", and so for {_names(sources[1:])}" if sources[1:] else ""
    fix = (
        f"a firewall forbids it; on {target.name}: "
        f"`sudo ufw allow proto tcp from {address} to any port {numbers}`{others}"
    )
    return Advice(target.name, "reached", text, False, fix)


def _names(hosts: Sequence[Host]) -> str:
    return ", ".join(host.name for host in hosts)
