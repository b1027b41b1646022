"""Generations of a fleet's roles. While a fleet changes its model there are two, side by side on its hosts.

Both run under one Ray and take turns: 0 and 1. Each has ports, names (a namespace of Ray's) and a folder of
its own, for logs and for what its controller keeps, so that roles of two models never meet. Gateways have one
set of ports, which clients know, and change over one after the other. The head knows which generation is
active.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, replace
from typing import Any

from cluster.errors import ClusterError, ConfigError, LibraryError, MoemeshError, error_from_wire
from cluster.fleet.file import FleetFile, Host, Ports
from cluster.fleet.folder import Folder
from cluster.fleet.wanted import library_of
from cluster.library.bundled import open_model


@dataclass(frozen=True)
class Generation:
    """What one serves. model: as in the fleet file; name: the library's; digest: of its manifest; variant:
    never ""."""

    number: int
    model: str
    variant: str
    name: str
    digest: str

    def same(self, other: Generation) -> bool:
        """Whether their tokens are: the same library, wherever it lies, and the same variant of it."""
        return (self.digest, self.variant) == (other.digest, other.variant)

    @property
    def told(self) -> str:
        """For people."""
        return f"{self.name} ({self.variant}, {self.digest[:12]})"


@dataclass(frozen=True)
class Generations:
    """active: serves, or did until gateways began to change over. other: also has roles, while the model is
    being changed. orders: what operators had asked for when that began, as Orders has it in a text."""

    active: Generation
    other: Generation | None = None
    orders: str = ""

    def to_wire(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_wire(cls, values: Any) -> Generations:
        other = values["other"]
        return cls(
            Generation(**values["active"]),
            None if other is None else Generation(**other),
            str(values.get("orders", "")),
        )


@dataclass(frozen=True)
class Turn:
    """From one generation to another. to: shall serve; of: shall end. back: `to` serves already, or did, so
    that what it lacks has been ended for the other's sake, and it can do without."""

    to: Generation
    of: Generation
    back: bool

    @property
    def reverse(self) -> Turn:
        return replace(self, to=self.of, of=self.to, back=not self.back)

    def to_wire(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_wire(cls, values: Any) -> Turn:
        return cls(Generation(**values["to"]), Generation(**values["of"]), bool(values["back"]))


def turn_to(asked: Generation, now: Generations) -> Turn | None:
    """What has to be done so that the fleet serves what is asked for, and nothing else; None for nothing. The
    library is where the file has it now.

    Raises ClusterError in the middle of a change between two others.
    """
    active, other = now.active, now.other
    if other is None:
        return None if asked.same(active) else Turn(replace(asked, number=1 - active.number), active, False)
    if asked.same(active):
        return Turn(replace(asked, number=active.number), other, True)
    if asked.same(other):
        return Turn(replace(asked, number=other.number), active, False)
    raise ClusterError(
        f"the fleet changes from {active.told} to {other.told}, and the fleet file names {asked.told}; name "
        "one of these two there, and call `moemesh fleet upgrade --model` to have it come to its end"
    )


def unchanged(asked: Generation, now: Generations) -> Generation:
    """The active one, with its library where the file has it now. Raises ClusterError where a change of the
    model is under way, or would have to be made first."""
    if now.other is not None:
        raise ClusterError(
            f"the fleet changes its model: {now.active.told} and {now.other.told} are there; name the one "
            "that shall stay in the fleet file, and call `moemesh fleet upgrade --model`"
        )
    if not asked.same(now.active):
        raise ClusterError(
            f"the fleet serves {now.active.told}, the fleet file names {asked.told}; correct `model` and "
            "`variant` there, or have the fleet change over with `moemesh fleet upgrade --model`"
        )
    return replace(asked, number=now.active.number)


def of_generation(fleet: FleetFile, generation: Generation) -> FleetFile:
    """As `numbered`, with its model."""
    return replace(numbered(fleet, generation.number), model=generation.model, variant=generation.variant)


def numbered(fleet: FleetFile, number: int) -> FleetFile:
    """The file as if it were about this generation alone. fleet: as it was read.

    Raises ConfigError for the second one where the file has no ports for it.
    """
    hosts = tuple(replace(host, ports=_ports(host, number)) for host in fleet.hosts)
    return replace(fleet, hosts=hosts, generation=number)


def _ports(host: Host, number: int) -> Ports:
    ports = host.ports
    if not number:
        return ports
    if not ports.spare:
        raise ConfigError(
            f"ports.spare of host {host.name} is 0, and a second model needs ports of its own; give it some"
        )
    above = ports.spare
    return replace(
        ports,
        controller=ports.controller + above,
        node=ports.node + above,
        blobs=ports.blobs + above,
        routers=ports.routers + above,
        spare=-above,
    )


def asked_for(fleet: FleetFile, host: Host) -> Generation:
    """What the file names, of number 0. host: whose library is looked at. Raises LibraryError."""
    library = open_model(library_of(fleet, host))
    variant = fleet.variant or library.manifest.default_variant
    library.variant(variant)
    return Generation(0, fleet.model, variant, library.name, library.digest)


def read(folder: Folder) -> Generations | None:
    """Of the fleet whose head this is; None where nothing has been served yet. Raises ClusterError."""
    try:
        return Generations.from_wire(json.loads(folder.generations.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise ClusterError(
            f"{folder.generations} is not readable ({error}); end the fleet with `moemesh down --fleet`"
        ) from error


def write(folder: Folder, now: Generations) -> None:
    """At once or not at all."""
    draft = folder.generations.with_suffix(".tmp")
    draft.write_text(json.dumps(now.to_wire(), indent=1))
    draft.replace(folder.generations)


def served(fleet: FleetFile, head: Host, folder: Folder) -> Generations:
    """As `read`, also of a fleet that an older version has started, which has noted its model elsewhere, and
    of one that serves nothing yet: what the file names. Raises LibraryError, ClusterError."""
    if (found := read(folder)) is not None:
        return found
    record = folder.read()
    config = {} if record is None else record.config
    model, variant = config.get("model", fleet.model), config.get("variant", fleet.variant)
    return Generations(asked_for(replace(fleet, model=model, variant=variant), head))


def told(fleet: FleetFile, head: Host, folder: Folder) -> dict[str, Any]:
    """What the fleet serves and what its file names, for `heard` on another machine. A library that the
    installed version cannot read is told as the error that it is."""
    now = served(fleet, head, folder).to_wire()
    try:
        return now | {"asked": dataclasses.asdict(asked_for(fleet, head))}
    except LibraryError as error:
        return now | {"asked": [type(error).__name__, str(error)]}


def heard(values: Any) -> tuple[Generations, Generation | MoemeshError]:
    """What the fleet serves, what its file names, or why that cannot be read."""
    asked = values["asked"]
    found = Generation(**asked) if isinstance(asked, dict) else error_from_wire(*asked)
    return Generations.from_wire(values), found
