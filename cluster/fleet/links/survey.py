"""The side that asks: measures every link of a fleet, in rounds in which no host has two measurements."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from cluster.errors import HostFailed, MoemeshError
from cluster.fleet.conversation import Conversation
from cluster.fleet.file import FleetFile, Host
from cluster.fleet.links.listening import OURS
from cluster.fleet.links.measuring import OPEN
from cluster.fleet.links.portlist import wanted_ports
from cluster.fleet.links.tournament import rounds
from cluster.fleet.machine import Progress, Quiet
from cluster.fleet.muster import Muster
from cluster.fleet.shell import Shell, moemesh
from cluster.fleet.signals import Signals

PAIR_S = 30.0
"""Longest that a round may take: both directions of a link on which everything times out."""

CLOCK_TRIES = 5


class Skew(NamedTuple):
    """ahead_s: of a host's clock over this machine's. error_s: the truth is at most so far from it."""

    ahead_s: float
    error_s: float


@dataclass(frozen=True)
class Seat:
    """A host in a survey. up: whether a fleet runs there. ports: what is at each (listening.py). more: a port
    beside the fleet file's that listens."""

    host: Host
    up: bool
    ports: Mapping[int, str]
    more: int
    skew: Skew


@dataclass(frozen=True)
class Direction:
    """From one host to another. ports: what a connection there met (measuring.py), the SSH server's and
    `more` included. Seconds, bytes per second; None where nothing was measured: failed says why."""

    source: str
    target: str
    ports: Mapping[int, str] = field(default_factory=dict)
    median_s: float | None = None
    p99_s: float | None = None
    round_trips: int = 0
    bytes_per_s: float | None = None
    failed: str = ""


@dataclass(frozen=True)
class Survey:
    """seats: of the hosts that took part, in the file's order. directions: two for each pair of them, in the
    order of their sources, then of their targets."""

    seats: Mapping[str, Seat]
    directions: tuple[Direction, ...]


def survey(
    fleet: FleetFile, hosts: Iterable[Host], progress: Progress, signals: Signals
) -> tuple[Survey, list[MoemeshError]]:
    """What was found, and the errors of hosts that cannot take part."""
    hosts = list(hosts)
    muster = Muster(fleet, progress, signals)
    secret = secrets.token_hex(32)
    talks: dict[str, Conversation] = {}

    def begin(shell: Shell) -> Seat:
        command = moemesh(shell.host, "fleet", "survey")
        talk = talks[shell.host.name] = Conversation(shell, command, Quiet())
        return _seat(talk, fleet, secret, PAIR_S * len(hosts))

    try:
        seats, errors = muster.each("opening ports on", hosts, begin)
        found: list[Direction] = []
        turns = rounds(list(seats))
        for number, pairs in enumerate(turns, 1):
            measure = partial(_pair, others=dict(pairs), seats=seats, talks=talks, secret=secret)
            what = f"links, round {number} of {len(turns)}: from"
            measured, _ = muster.each(what, [seats[one].host for one, _ in pairs], measure)
            found += [direction for both in measured.values() for direction in both]
        order = {name: number for number, name in enumerate(seats)}
        found.sort(key=lambda one: (order[one.source], order[one.target]))
        return Survey(seats, tuple(found)), errors
    finally:
        _end(talks.values())


def _end(talks: Iterable[Conversation]) -> None:
    for talk in talks:
        try:
            talk.close()
        except HostFailed:  # what it was asked for has been answered, or has failed with the same words
            continue


def _seat(talk: Conversation, fleet: FleetFile, secret: str, seconds: float) -> Seat:
    host = talk.host
    skew = measure_skew(lambda: float(talk.ask({"do": "time"})), time.time)
    ports = list(wanted_ports(fleet, host))
    order = {"do": "listen", "address": host.address, "ports": ports, "secret": secret, "seconds": seconds}
    said = talk.ask(order)
    states = _by_port(said["ports"])
    return Seat(host, bool(said["up"]), states, int(said["more"]), skew)


def measure_skew(ask: Callable[[], float], clock: Callable[[], float]) -> Skew:
    """ask: the other clock's time, over a link. Of several questions the fastest answer counts: the other
    clock was read between question and answer, so the middle is wrong by half the round trip at most."""
    found = []
    for _ in range(CLOCK_TRIES):
        begin = clock()
        there = ask()
        end = clock()
        found.append(Skew(there - (begin + end) / 2, (end - begin) / 2))
    return min(found, key=lambda skew: skew.error_s)


def _pair(
    shell: Shell,
    *,
    others: Mapping[str, str],
    seats: Mapping[str, Seat],
    talks: Mapping[str, Conversation],
    secret: str,
) -> tuple[Direction, Direction]:
    """Both directions between the shell's host and the one that `others` has for it."""
    one, other = seats[shell.host.name], seats[others[shell.host.name]]
    return (
        _direction(one, other, talks[one.host.name], secret),
        _direction(other, one, talks[other.host.name], secret),
    )


def _direction(source: Seat, target: Seat, talk: Conversation, secret: str) -> Direction:
    names = (source.host.name, target.host.name)
    address = target.host.address
    ports: dict[int, str] = {}
    try:
        asked = [*target.ports, target.more, target.host.ssh.port]
        ports = _by_port(talk.ask({"do": "reach", "address": address, "ports": asked}))
        listening = [port for port in (*target.ports, target.more) if target.ports.get(port, OURS) == OURS]
        port = next((port for port in listening if ports[port] == OPEN), 0)
        if not port:
            return Direction(*names, ports)
        order = {"do": "measure", "address": address, "port": port, "secret": secret}
        return Direction(*names, ports, **talk.ask(order))
    except MoemeshError as error:
        return Direction(*names, ports, failed=str(error))


def _by_port(answer: Mapping[str, Any]) -> dict[int, str]:
    """JSON has no numbers for keys."""
    return {int(port): str(state) for port, state in answer.items()}
