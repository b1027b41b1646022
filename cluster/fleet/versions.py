"""Which version of moemesh each role of a fleet runs, who may be upgraded, and in which order. Pure.

A `status` is what the controller answers (`cluster.controller.answers.status`). A version is "" where a
process is not there, or is too old to tell.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from cluster.controller.members import Health, Role
from cluster.dispatch.frames import spoken
from cluster.errors import ConfigError, ProtocolError, Unavailable
from cluster.fleet.file import FleetFile, Host
from cluster.fleet.wanted import CONTROLLER, Wanted

Status = Mapping[str, Any]

TURNS = (CONTROLLER, Role.GATEWAY.value, Role.ROUTER.value, Role.NODE.value)
"""One process after the other, in this order. A gateway's clients go to another one, so it goes while every
router is there; a router's requests go to another one, which asks a node that holds experts still."""


def in_order(fleet: FleetFile, only: Collection[str] = ()) -> list[Host]:
    """The hosts to upgrade, one after the other: the head first, whose controller streams do not need. What
    it cannot do costs nobody a token, and it knows from then on whatever a newer one may be asked for.

    only: names; empty for all. Raises ConfigError for one that the fleet does not have.
    """
    known = {host.name for host in fleet.hosts}
    for name in only:
        if name not in known:
            raise ConfigError(f"the fleet has no host {name!r}; it has {', '.join(sorted(known))}")
    chosen = [host for host in fleet.hosts if not only or host.name in only]
    return sorted(chosen, key=lambda host: not host.head)  # else in the file's order


def versions(status: Status, wanted: Sequence[Wanted]) -> dict[str, str]:
    """Of every role by name."""
    told = {member["id"]: str(member.get("software", "")) for member in status["members"]}
    told[CONTROLLER] = str(status.get("software", ""))
    return {each.name: told.get(each.name, "") for each in wanted}


def by_host(status: Status, wanted: Sequence[Wanted]) -> dict[str, list[str]]:
    """The versions that run on each host, each once."""
    running = versions(status, wanted)
    hosts = dict.fromkeys(each.host for each in wanted)
    return {host: sorted({running[each.name] for each in wanted if each.host == host}) for host in hosts}


def outdated(status: Status, wanted: Sequence[Wanted], version: str) -> list[Wanted]:
    """The roles that do not run `version` or are not ready, in the order of their turns; so are nodes that an
    upgrade has drained which was cut before it gave them back."""
    running = versions(status, wanted)
    drained = {one["id"] for one in status["members"] if one.get("for_upgrade")}
    done = (_ready(status) | {CONTROLLER}) - drained
    found = [each for each in wanted if running[each.name] != version or each.name not in done]
    return sorted(found, key=lambda each: TURNS.index(each.role))


def check_ready(status: Status, elsewhere: Sequence[Wanted]) -> None:
    """Raises Unavailable, naming them, if roles on the other hosts are not ready: one device at a time."""
    ready = _ready(status) | {CONTROLLER}
    if away := [f"{each.name} on {each.host}" for each in elsewhere if each.name not in ready]:
        raise Unavailable(
            f"not ready: {', '.join(away)}; one host is upgraded at a time, so mend that first, or begin "
            "with that host (--host)"
        )


def check_protocols(status: Status, version: str, protocol: int) -> None:
    """Raises ProtocolError, naming it, if a member could not talk to a process of this protocol."""
    for member in status["members"]:
        theirs = int(member.get("protocol", protocol))
        if spoken(protocol, theirs) is None:
            raise ProtocolError(
                f"moemesh {version} speaks protocol {protocol}, {member['id']} speaks {theirs}; upgrade "
                "every host to a version between the two first"
            )


def _ready(status: Status) -> set[str]:
    return {one["id"] for one in status["members"] if one["ready"] and one["health"] == Health.ALIVE}
