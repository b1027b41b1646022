"""`doctor --fleet`: what every host's own `moemesh doctor` says, and what only shows side by side."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cluster.errors import HostFailed
from cluster.fleet.file import FleetFile
from cluster.fleet.machine import Progress
from cluster.fleet.muster import Muster
from cluster.fleet.shell import Shell, moemesh
from cluster.fleet.signals import Signals

CLOCK_S = 1.0
"""Two clocks further apart make logs of two machines hard to read, and certificates fail in the end."""

MUST_AGREE = ("moemesh", "numba", "llvmlite")
"""Versions that decide about bits and protocol."""


@dataclass(frozen=True)
class Report:
    """report: of `moemesh doctor --json` there. clock_s: how far its clock is ahead of this machine's."""

    report: Mapping[str, Any]
    clock_s: float

    @property
    def versions(self) -> Mapping[str, str]:
        found: Mapping[str, str] = self.report["versions"]
        return found


@dataclass(frozen=True)
class Advice:
    """One finding of one host. good: None where there is nothing to judge; fix: "" where there is nothing to
    do."""

    host: str
    name: str
    text: str
    good: bool | None = None
    fix: str = ""


def ask(fleet: FleetFile, progress: Progress, signals: Signals) -> dict[str, Report]:
    """Reports by host. Raises HostFailed for hosts that cannot be asked."""
    muster = Muster(fleet, progress, signals)
    return muster.everywhere("asking", fleet.hosts, lambda shell: _report(shell, time.time))


def _report(shell: Shell, clock: Callable[[], float]) -> Report:
    said: list[str] = []
    # Exit code 1 is a finding, which the report has.
    shell.run(f"{moemesh(shell.host, 'doctor', '--json')} || true", said.append)
    try:
        report = json.loads("".join(said))
    except ValueError:
        raise HostFailed(f"host {shell.host.name}: `moemesh doctor` gave no report; try it there") from None
    times: list[str] = []
    begin = clock()
    shell.run("date +%s.%N", times.append)
    middle = (begin + clock()) / 2
    return Report(report, float(times[-1]) - middle)


def judge(fleet: FleetFile, reports: Mapping[str, Report]) -> list[Advice]:
    """Findings in the file's order of hosts."""
    return [one for host in fleet.hosts for one in _of_host(host.name, fleet.head.name, reports)]


def _of_host(host: str, head: str, reports: Mapping[str, Report]) -> list[Advice]:
    own = reports[host]
    report = own.report
    cpu = report["machine"]
    found = [Advice(host, "machine", f"{cpu['cpu']}, {cpu['cores']} cores")]
    found.append(Advice(host, "instruction set", str(report["instruction_set"]["chosen"])))
    found.append(_versions(host, head, own.versions, reports[head].versions))
    if (bits := report.get("bits")) is not None:
        wrong = bits["wrong"]
        fix = "install the versions of numba and llvmlite that the other hosts have" if wrong else ""
        found.append(Advice(host, "bits", f"{len(wrong)} of {bits['checked']} cases wrong", not wrong, fix))
    good = abs(own.clock_s) <= CLOCK_S
    fix = "" if good else "`sudo timedatectl set-ntp true` there"
    found.append(Advice(host, "clock", f"{own.clock_s:+.2f} s from this machine's", good, fix))
    return found


def _versions(host: str, head: str, own: Mapping[str, str], wanted: Mapping[str, str]) -> Advice:
    other = [name for name in MUST_AGREE if own[name] != wanted[name]]
    if _minor(own["python"]) != _minor(wanted["python"]):  # Ray refuses another
        other.append("python")
    text = ", ".join(f"{name} {version}" for name, version in own.items())
    fix = "; ".join(f"install {name} {wanted[name]} there, as on {head}" for name in other)
    return Advice(host, "versions", text, not other, fix)


def _minor(version: str) -> tuple[str, ...]:
    return tuple(version.split(".")[:2])
