"""`up --fleet` and `down --fleet`, from any machine that reaches the hosts by ssh.

    all hosts: fleet file there, probed ─► head joins ─► the others join ─► head starts the roles ─► it serves

Whatever fails, what this attempt has started is stopped again on every host. Hosts that run are left alone,
also while their head is away: it comes back to them with what its Ray has kept.
"""

from __future__ import annotations

import json
import secrets
import shlex
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from cluster.errors import HostFailed, MoemeshError, NotUp, OutOfMemoryBudget, ProtocolError
from cluster.fleet.file import FleetFile, Host
from cluster.fleet.lines import Listener
from cluster.fleet.machine import Progress, Quiet, Stopwatch
from cluster.fleet.room import OVERHEAD_BYTES
from cluster.fleet.shell import Shell, file_on, moemesh
from cluster.fleet.signals import Signals
from cluster.fleet.wanted import state_of

POLL_S = 0.05
Probe = dict[str, Any]
Job = Callable[[Shell], Any]


def bring_up(fleet: FleetFile, text: str, progress: Progress, signals: Signals) -> dict[str, Any]:
    """Start what does not run yet and return what the head says of it: grpc, http, model, variant, hosts.

    text: the fleet file, as the hosts shall have it. Raises HostFailed, and what the hosts report
    with their names.
    """
    muster = Muster(fleet, progress, signals)
    probes = muster.everywhere("checking", fleet.hosts, lambda shell: probe(shell, text))
    check_probes(fleet, probes)
    stale = stale_hosts(fleet, probes)
    muster.everywhere("clearing", stale, lambda shell: call(shell, Quiet(), "leave"))
    missing = [host for host in fleet.hosts if not probes[host.name]["up"] or host in stale]
    progress.done(muster.watch.timed(f"{len(fleet.hosts)} hosts checked, {len(missing)} to start"))
    goes_on = len(missing) < len(fleet.hosts)
    keys = muster.on(fleet.head, _secrets) if goes_on else new_secrets()
    try:
        return muster.start(missing, keys)
    except BaseException:
        progress.phase("stopping what was started")
        # With a head that comes back would go what the others know it by.
        muster.stop([host for host in missing if not (goes_on and host.head)])
        raise


def take_down(fleet: FleetFile, text: str, progress: Progress, signals: Signals) -> int:
    """Stop the fleet, whoever has started it, the head's controller first; returns how many hosts had
    something to stop. text: the fleet file. Raises HostFailed when the other hosts are done, NotUp if there
    was nothing anywhere."""
    muster = Muster(fleet, progress, signals)
    errors: list[MoemeshError] = []
    stopped = 0
    others = [host for host in fleet.hosts if not host.head]
    for hosts in ([fleet.head], others):
        found, failed = muster.each("stopping", hosts, lambda shell: _with_file(shell, "leave", text))
        stopped += sum(bool(answer["stopped"]) for answer in found.values())
        errors += failed
    if errors:
        raise _together(errors)
    if not stopped:
        raise NotUp(f"nothing of fleet {fleet.name} runs on its hosts: there is nothing to stop")
    return stopped


def stale_hosts(fleet: FleetFile, probes: dict[str, Probe]) -> list[Host]:
    """Those that run and cannot go on, since their head has ended and will not know them again."""
    head = probes[fleet.head.name]
    if head["up"] or head["kept"]:
        return []
    return [host for host in fleet.hosts if probes[host.name]["up"]]


def check_probes(fleet: FleetFile, probes: dict[str, Probe]) -> None:
    """Raises ProtocolError for hosts of different versions, OutOfMemoryBudget for one without the memory."""
    head = probes[fleet.head.name]
    for host in fleet.hosts:
        own = probes[host.name]
        if own["numerics"] != head["numerics"] or own["version"] != head["version"]:
            raise ProtocolError(
                f"host {host.name} has moemesh {own['version']}, {fleet.head.name} has {head['version']}; "
                "install the same on both"
            )
        needed = host.memory_bytes + OVERHEAD_BYTES
        if not own["up"] and own["free_bytes"] < needed:
            raise OutOfMemoryBudget(
                f"host {host.name} has {own['free_bytes']} bytes of memory free, but memory_bytes of "
                f"{host.memory_bytes} and {OVERHEAD_BYTES} for the processes need {needed}; lower it in the "
                "fleet file, or end what uses the memory"
            )


def new_secrets() -> dict[str, str]:
    """Ray's token and the cluster's key, as `join` takes them."""
    return {"token": secrets.token_hex(32), "key": secrets.token_hex(32)}


class Muster:
    """Jobs on many hosts at once. A signal cancels them."""

    def __init__(self, fleet: FleetFile, progress: Progress, signals: Signals) -> None:
        self._fleet, self._progress, self._signals = fleet, progress, signals
        self.watch = Stopwatch()

    def start(self, missing: Sequence[Host], keys: dict[str, str]) -> dict[str, Any]:
        """Join the missing hosts, then start the roles; returns the head's answer."""
        given = json.dumps(keys)
        head = self._fleet.head
        if head in missing:
            self.on(head, lambda shell: _join(shell, self._progress, given))
        others = [host for host in missing if host is not head]
        self.everywhere("joining", others, lambda shell: _join(shell, Quiet(), given))
        if missing:
            self._progress.done(self.watch.timed(f"{len(missing)} hosts have joined"))
        found: dict[str, Any] = self.on(head, lambda shell: call(shell, self._progress, "serve"))
        return found

    def stop(self, hosts: Sequence[Host]) -> None:
        """After a failure, which is what will be reported: hosts that cannot be stopped are only told of."""
        _, errors = self.each("stopping", hosts, lambda shell: call(shell, Quiet(), "leave"), patient=True)
        for error in errors:
            self._progress.done(f"not stopped: {error}")

    def on(self, host: Host, job: Job) -> Any:
        return self.everywhere(f"{host.name}:", [host], job)[host.name]

    def everywhere(self, what: str, hosts: Iterable[Host], job: Job) -> dict[str, Any]:
        """Answers by host. Raises the error of the first in the file, with how many others have failed."""
        found, errors = self.each(what, hosts, job)
        if errors:
            raise _together(errors)
        return found

    def each(
        self, what: str, hosts: Iterable[Host], job: Job, patient: bool = False
    ) -> tuple[dict[str, Any], list[MoemeshError]]:
        """Answers by host, and the errors of the others, in the file's order. patient: no signal ends it."""
        shells = {host.name: Shell(host) for host in hosts}
        found: dict[str, Any] = {}
        errors: list[MoemeshError] = []
        if not shells:
            return found, errors
        with ThreadPoolExecutor(len(shells), "host") as pool:
            futures = {name: pool.submit(job, shell) for name, shell in shells.items()}
            try:
                self._wait(what, futures, patient)
            except BaseException:
                for shell in shells.values():
                    shell.cancel()
                raise
        for name, future in futures.items():
            try:
                found[name] = future.result()
            except MoemeshError as error:
                errors.append(error)
        return found, errors

    def _wait(self, what: str, futures: dict[str, Future[Any]], patient: bool) -> None:
        while waiting := [name for name, future in futures.items() if not future.done()]:
            if not patient:
                self._signals.check()
            if len(futures) > 1:
                self._progress.phase(f"{what} {', '.join(waiting)}")
            time.sleep(POLL_S)


def _together(errors: Sequence[MoemeshError]) -> MoemeshError:
    if len(errors) == 1:
        return errors[0]
    said = "; ".join(str(error) for error in errors)
    return HostFailed(f"{len(errors)} hosts failed: {said}")


def call(shell: Shell, progress: Progress, verb: str, *more: str, given: str = "", before: str = "") -> Any:
    """`moemesh fleet VERB` on its machine; returns what it answers."""
    host = shell.host
    listener = Listener(progress, f"host {host.name}")
    words = ("fleet", verb, file_on(host), "--host", host.name, "--lines", *more)
    shell.run(before + moemesh(host, *words), listener.hear, given)
    if listener.answer is None:
        raise HostFailed(f"host {host.name}: `moemesh fleet {verb}` gave no answer; try it there by hand")
    return listener.answer


def probe(shell: Shell, text: str) -> Probe:
    """What is there of a fleet. Puts the fleet file there."""
    found: Probe = _with_file(shell, "probe", text)
    return found


def _with_file(shell: Shell, verb: str, text: str) -> Any:
    """As `call`, on a host that may not have the fleet file yet."""
    file, state = shlex.quote(file_on(shell.host)), shlex.quote(state_of(shell.host))
    before = f"umask 077 && mkdir -p {state} && cat > {file} && "
    return call(shell, Quiet(), verb, given=text, before=before)


def _join(shell: Shell, progress: Progress, given: str) -> Any:
    return call(shell, progress, "join", "--given-secrets", given=given)


def _secrets(shell: Shell) -> dict[str, str]:
    found: dict[str, str] = call(shell, Quiet(), "secrets")
    return found
