"""`fleet upgrade`, from any machine that reaches the hosts by ssh: one host after the other, under load.

    for each host: install ─► would the fleet accept it? kernels compiled ─► its roles started anew

What has to be done on a host is done by the host itself (prepare.py, renew.py): if this process or its
network goes in the middle, the host that it was at comes to its end, and a second run goes on with the next.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any

from cluster.errors import HostFailed, LibraryError, MoemeshError, NotUp, ProtocolError
from cluster.fleet.file import FleetFile, Host
from cluster.fleet.generations import heard, unchanged
from cluster.fleet.machine import Progress, Quiet
from cluster.fleet.muster import Muster, Probe, call, probe
from cluster.fleet.shell import Shell
from cluster.fleet.signals import Signals
from cluster.fleet.versions import in_order

OLDER = "an older version"


def upgrade(
    fleet: FleetFile,
    text: str,
    progress: Progress,
    signals: Signals,
    install: str = "",
    only: Collection[str] = (),
) -> dict[str, Any]:
    """Have every host, or those of `only`, run what is installed there: {"version", "renewed": its roles}.

    text: the fleet file. install: a shell command, run on each host whose installed version is not the first
    one's. Raises ClusterError where the file names another model than the fleet serves; HostFailed, or what a
    host reported, with the versions that run where; hosts behind it are as they were.
    """
    order = in_order(fleet, only)
    muster = Muster(fleet, progress, signals)
    found = everybody(muster, fleet, text)
    number = _generation(muster, fleet, found[fleet.head.name])
    progress.done(muster.watch.timed(f"{len(fleet.hosts)} hosts checked, {len(order)} to upgrade"))
    return _Upgrade(fleet, muster, progress, install, number).run(order, found)


def _generation(muster: Muster, fleet: FleetFile, head: Probe) -> int:
    """Number of the active one. Raises ClusterError where the file names another model."""
    if "generation" not in head:  # the version that is installed there knows one only
        return 0
    try:
        told = muster.on(fleet.head, lambda shell: call(shell, Quiet(), "generations"))
    except LibraryError:  # an older version has started the fleet, with what this one cannot read
        return 0
    now, asked = heard(told)
    if not isinstance(asked, MoemeshError):  # else `prepare` says what the installed version does not go with
        unchanged(asked, now)
    return now.active.number


def everybody(muster: Muster, fleet: FleetFile, text: str) -> dict[str, Probe]:
    """What each host says of itself, with the fleet file there. Raises NotUp unless all have joined."""
    found = muster.everywhere("checking", fleet.hosts, lambda shell: probe(shell, text))
    for host in fleet.hosts:
        if not found[host.name]["up"]:
            raise NotUp(f"host {host.name} has not joined; start the fleet with `moemesh up --fleet`")
    return found


class _Upgrade:
    def __init__(
        self, fleet: FleetFile, muster: Muster, progress: Progress, install: str, generation: int
    ) -> None:
        self._fleet, self._muster, self._progress, self._install = fleet, muster, progress, install
        self._meant = ("--generation", str(generation)) if generation else ()
        self._version = ""

    def run(self, order: list[Host], found: Mapping[str, Probe]) -> dict[str, Any]:
        renewed: list[str] = []
        for host in order:
            try:
                renewed += self._host(host, str(found[host.name]["version"]))
            except MoemeshError as error:
                raise type(error)(f"{error}. {self._standing(host)}") from None
        return {"version": self._version, "renewed": renewed}

    def _host(self, host: Host, installed: str) -> list[str]:
        """Names of the roles that were started anew."""
        if self._install and installed != self._version:
            self._muster.on(host, self._put)
        answer = self._muster.on(host, lambda shell: self._call(shell, "prepare"))
        version = str(answer["version"])
        check_same(host.name, version, self._version)
        self._version = version
        if not answer["outdated"]:
            self._progress.done(f"host {host.name} runs {version} already")
            return []
        renewed = self._muster.on(host, lambda shell: self._call(shell, "renew"))["renewed"]
        self._progress.done(self._muster.watch.timed(f"host {host.name} runs {version}"))
        return [str(name) for name in renewed]

    def _call(self, shell: Shell, verb: str) -> Any:
        return call(shell, self._progress, verb, *self._meant)

    def _put(self, shell: Shell) -> None:
        self._progress.phase(f"host {shell.host.name}: {self._install}")
        said: list[str] = []
        try:
            shell.run(self._install, said.append)
        except HostFailed as error:
            raise HostFailed(f"{error}; `{self._install}` said: {last_of(said)}") from None

    def _standing(self, failed: Host) -> str:
        """What to do, and which versions run where, as far as the head can tell."""
        running: dict[str, list[str]] = {}
        with suppress(MoemeshError):
            head = self._fleet.head
            running = self._muster.on(head, lambda shell: call(shell, Quiet(), "versions", *self._meant))
        told = ", ".join(f"{host} runs {_named(versions)}" for host, versions in running.items())
        return (
            f"The upgrade stopped at host {failed.name}: {told or 'the head does not tell what runs where'}. "
            "Mend it, or install there what the others run, and call `moemesh fleet upgrade` again: it "
            "passes over hosts that are done"
        )


def check_same(host: str, version: str, first: str) -> None:
    """Raises ProtocolError if the host has another version installed than those before it. first: "" where
    it is the first."""
    if first and version != first:
        raise ProtocolError(
            f"host {host} has moemesh {version} installed, those before it run {first}; install {first} "
            "there, or have --install do it. Nothing was stopped there"
        )


def last_of(said: Collection[str], most: int = 5) -> str:
    """The last lines that say something, as one."""
    lines = [line.strip() for line in said if line.strip()]
    return " / ".join(lines[-most:]) or "nothing"


def _named(versions: list[str]) -> str:
    return " and ".join(version or OLDER for version in versions)
