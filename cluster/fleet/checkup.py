"""`doctor --fleet`: what every host's own `moemesh doctor` says, the links between them, and what only shows
side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cluster.errors import HostFailed
from cluster.fleet.file import FleetFile, Host
from cluster.fleet.findings import Advice
from cluster.fleet.links.judge import judge as judge_links
from cluster.fleet.links.survey import Skew, Survey, survey
from cluster.fleet.machine import Progress
from cluster.fleet.muster import Muster
from cluster.fleet.room import OVERHEAD_BYTES
from cluster.fleet.shell import Shell, moemesh
from cluster.fleet.signals import Signals
from cluster.sizes import about

CLOCK_S = 1.0
"""Two clocks further apart make logs of two machines hard to read, and certificates fail in the end."""

MUST_AGREE = ("moemesh", "numba", "llvmlite", "ray", "numerics")
"""Versions that decide about bits, or that refuse others."""

Report = Mapping[str, Any]
"""What `moemesh doctor --json` says on a host."""


@dataclass(frozen=True)
class Checkup:
    """reports: by host. failed: why there is none, by host. survey: of the hosts with a report."""

    reports: Mapping[str, Report]
    failed: Mapping[str, str]
    survey: Survey


def examine(fleet: FleetFile, progress: Progress, signals: Signals) -> Checkup:
    """Ask every host about itself, then about its links to the others."""
    muster = Muster(fleet, progress, signals)
    reports, errors = muster.each("asking", fleet.hosts, _report)
    silent = [host.name for host in fleet.hosts if host.name not in reports]
    failed = dict(zip(silent, map(str, errors), strict=True))
    asked = [host for host in fleet.hosts if host.name in reports]
    found, errors = survey(fleet, asked, progress, signals)
    silent = [host.name for host in asked if host.name not in found.seats]
    return Checkup(reports, failed | dict(zip(silent, map(str, errors), strict=True)), found)


def _report(shell: Shell) -> Report:
    said: list[str] = []
    # Exit code 1 is a finding, which the report has; another one is ssh's or the shell's.
    shell.run(f"{moemesh(shell.host, 'doctor', '--json')} || [ $? -eq 1 ]", said.append)
    try:
        report: Report = json.loads("".join(said))
    except ValueError:
        raise HostFailed(f"host {shell.host.name}: `moemesh doctor` gave no report; try it there") from None
    if "error" in report:
        raise HostFailed(f"host {shell.host.name}: {report['error']['message']}")
    if "findings" not in report:
        raise HostFailed(f"host {shell.host.name} has a moemesh older than this machine's; install the same")
    return report


def judge(fleet: FleetFile, found: Checkup) -> list[Advice]:
    """Findings in the file's order of hosts, then those of the fleet and of links."""
    advice = [one for host in fleet.hosts for one in _of_host(host, fleet.head.name, found)]
    advice += [*_cpu_types(found.reports), *judge_links(fleet, found.survey)]
    order = {host.name: number for number, host in enumerate(fleet.hosts)}
    return sorted(advice, key=lambda one: order.get(one.host, len(order)))


def _of_host(host: Host, head: str, found: Checkup) -> list[Advice]:
    advice: list[Advice] = []
    if (report := found.reports.get(host.name)) is not None:
        cpu = report["machine"]
        set_ = report["instruction_set"]["chosen"]
        advice.append(Advice(host.name, "machine", f"{cpu['cpu']}, {cpu['cores']} cores, {set_}"))
        wanted = found.reports.get(head, report)["versions"]
        advice.append(_versions(host, head, report["versions"], wanted))
        advice += _bits(host, report)
        advice += [_memory(host, report), *_cpu_time(host, report)]
        advice += [_own(host, one) for one in report["findings"] if _concerns_a_fleet(one)]
    if (seat := found.survey.seats.get(host.name)) is not None:
        advice.append(_clock(host, seat.skew, found.reports[host.name]["clock"]["synchronised"]))
    if (failed := found.failed.get(host.name)) is not None:
        text, _, fix = failed.partition("; ")
        advice.append(Advice(host.name, "asked", text, False, fix))
    return advice


def _versions(host: Host, head: str, own: Mapping[str, str], wanted: Mapping[str, str]) -> Advice:
    """wanted: those of the head."""
    other = [name for name in MUST_AGREE if own.get(name) != wanted.get(name)]
    if _minor(own["python"]) != _minor(wanted["python"]):  # Ray refuses another
        other.append("python")
    text = ", ".join(f"{name} {version}" for name, version in own.items())
    fix = "; ".join(_install(name, wanted, head) for name in other)
    return Advice(host.name, "versions", text, not other, fix)


def _install(name: str, wanted: Mapping[str, str], head: str) -> str:
    what = f"a moemesh of numerics {wanted.get(name)}" if name == "numerics" else f"{name} {wanted.get(name)}"
    return f"install {what} there, as on {head}"


def _minor(version: str) -> tuple[str, ...]:
    return tuple(version.split(".")[:2])


def _bits(host: Host, report: Report) -> list[Advice]:
    if (bits := report.get("bits")) is None:
        return []
    wrong = bits["wrong"]
    fix = "install the versions of numba and llvmlite that the other hosts have" if wrong else ""
    return [Advice(host.name, "bits", f"{len(wrong)} of {bits['checked']} cases wrong", not wrong, fix)]


def _memory(host: Host, report: Report) -> Advice:
    """A host on which the fleet runs has taken its memory already."""
    here, needed = report["memory"], host.memory_bytes + OVERHEAD_BYTES
    limited = f", limited to {about(here['limit_bytes'])}" if here["limit_bytes"] is not None else ""
    text = f"{about(here['total_bytes'])}, {about(here['free_bytes'])} free{limited}"
    if report["ports"]["up"] or here["free_bytes"] >= needed:
        return Advice(host.name, "memory", text, True)
    fix = (
        f"{about(needed)} are needed: lower memory_bytes ({about(host.memory_bytes)}) in the fleet file, or "
        "end what uses the memory"
    )
    return Advice(host.name, "memory", text, False, fix)


def _cpu_time(host: Host, report: Report) -> list[Advice]:
    """Where there is less of it than the fleet file counts on."""
    here = report["cpu_time"]
    allowed = min(here["cores"], here["limit"] or here["cores"])
    if host.cores <= allowed:
        return []
    text = f"{allowed:g} of {here['cores']} cores may be used, the fleet file says {host.cores}"
    fix = f"`cores: {max(int(allowed), 1)}`, or raise the limit of its control group"
    return [Advice(host.name, "cpu time", text, False, fix)]


def _concerns_a_fleet(one: Mapping[str, Any]) -> bool:
    """Of a host's findings about itself: the disk, and what is wrong or advised that is not judged here."""
    return one["name"] == "disk" or (one["name"] in ("page_size", "kernels") and bool(one["fix"]))


def _own(host: Host, one: Mapping[str, Any]) -> Advice:
    return Advice(host.name, one["name"].replace("_", " "), one["text"], one["good"], one["fix"])


def _clock(host: Host, skew: Skew, synchronised: bool | None) -> Advice:
    """One that nothing keeps right, and is right as yet, is worth advice."""
    good = abs(skew.ahead_s) - skew.error_s <= CLOCK_S
    kept = good and synchronised is not False
    text = f"{skew.ahead_s:+.3f} s from this machine's, ± {1e3 * skew.error_s:.2g} ms"
    if synchronised is False:
        text += ", not synchronised"
    fix = "" if kept else "`sudo timedatectl set-ntp true` there"
    return Advice(host.name, "clock", text, kept or (None if good else False), fix)


def _cpu_types(reports: Mapping[str, Report]) -> list[Advice]:
    """Where they differ: which is no error."""
    kinds: dict[str, list[str]] = {}
    for name, report in reports.items():
        kind = f"{report['machine']['cpu']} ({report['instruction_set']['chosen']})"
        kinds.setdefault(kind, []).append(name)
    if len(kinds) < 2:
        return []
    said = "; ".join(f"{', '.join(names)}: {kind}" for kind, names in kinds.items())
    return [Advice("fleet", "cpu types", f"{said}. They compute the same bits")]
