"""The one JSON object that every `moemesh bench` prints, and the table that people read.

Ids are stable over the project's life, so that figures can be compared. A figure is judged only where
an issue or the design set a target.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import llvmlite.binding
from rich.table import Table

from cluster.cli.output import table_console
from cluster.fleet.cgroups import autogrouped
from kernels.hwcap import arm_features

VERSIONS = ("moemesh", "numpy", "numba", "llvmlite", "ray", "grpcio")
X86_FEATURES = ("avx2", "avxvnni", "avx512f", "avx512vnni", "avx512bf16", "amx-int8")
ARM_FEATURES = ("neon", "dotprod", "i8mm", "sve2")


@dataclass(frozen=True)
class Target:
    """What a figure must reach (`must`) and hopes for (`aim`). at_most: smaller is better."""

    must: float | None = None
    aim: float | None = None
    at_most: bool = False
    reference: str | None = None

    def met(self, value: float) -> bool | None:
        if self.must is None:
            return None
        return value <= self.must if self.at_most else value >= self.must


NO_TARGET = Target()


@dataclass(frozen=True)
class Result:
    """value: the median of `runs` measurements, spread: their smallest and largest; of a percentile the
    percentile, and its confidence interval.

    calm_runs, disturbed_runs, disturbed: only of figures for which it was watched whether the machine was its
    own (kernelbench/calm.py). Calm measurements alone count; where there is none all do: it is `disturbed`.
    """

    id: str
    value: float
    unit: str
    reference: str | None
    must: float | None
    aim: float | None
    met: bool | None
    spread: tuple[float, float]
    runs: int
    calm_runs: int | None = None
    disturbed_runs: int | None = None
    disturbed: bool | None = None

    def as_dict(self) -> dict[str, Any]:
        """Without what was not watched."""
        watched = ("calm_runs", "disturbed_runs", "disturbed")
        return {name: v for name, v in asdict(self).items() if v is not None or name not in watched}


def result(id: str, samples: Sequence[float], unit: str, target: Target = NO_TARGET) -> Result:
    """Judge the median of at least one sample."""
    value = statistics.median(samples)
    return result_of(id, value, (min(samples), max(samples)), unit, len(samples), target)


def result_of(
    id: str, value: float, spread: tuple[float, float], unit: str, runs: int, target: Target = NO_TARGET
) -> Result:
    """Judge a figure that is no median."""
    return Result(
        id=id,
        value=_short(value),
        unit=unit,
        reference=target.reference,
        must=target.must,
        aim=target.aim,
        met=target.met(value),
        spread=(_short(spread[0]), _short(spread[1])),
        runs=runs,
    )


def percentile(samples: Sequence[float], percent: float) -> float:
    """Nearest rank: the smallest sample that at least `percent` of them do not exceed."""
    ordered = sorted(samples)
    rank = -(-len(ordered) * percent // 100)
    return ordered[max(0, int(rank) - 1)]


@dataclass
class Report:
    preset: str
    results: list[Result] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return {
            "machine": machine(),
            "git": git_revision(),
            "preset": self.preset,
            "results": [r.as_dict() for r in self.results],
        }

    def as_json(self) -> str:
        return json.dumps(self.as_dict(), indent=2)

    def as_table(self) -> Table:
        table = Table(
            "id", "value", "unit", "spread", "runs", "must", "aim", "", box=None, header_style="bold"
        )
        for r in self.results:
            mark = {None: "", True: "[green]met[/]", False: "[red]not met[/]"}[r.met]
            spread = f"{r.spread[0]:g} – {r.spread[1]:g}" if r.runs > 1 else ""
            table.add_row(
                r.id, f"{r.value:g}", r.unit, spread, _runs(r), _or_blank(r.must), _or_blank(r.aim), mark
            )
        return table

    def show(self, as_json: bool) -> None:
        """Print to stdout: the object, or the table under one line about the machine."""
        console = table_console()
        if as_json:
            console.file.write(self.as_json() + "\n")
            return
        here = machine()
        console.print(f"{here['cpu']}, {here['cores']} cores, preset {self.preset}", soft_wrap=True)
        console.print(self.as_table())


def machine() -> dict[str, Any]:
    """Where the figures come from. cores: those this process may use. autogroups: whether sessions share
    them (cluster/fleet/cgroups.py): figures of clients beside a cluster depend on it."""
    known = llvmlite.binding.get_host_cpu_features()
    host = {name for name, on in known.items() if on} | arm_features()
    return {
        "cpu": _cpu_name(),
        "features": [f for f in (*X86_FEATURES, *ARM_FEATURES) if f in host],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "autogroups": autogrouped(),
        "versions": {"python": platform.python_version()} | {name: version(name) for name in VERSIONS},
    }


def git_revision() -> str | None:
    """Commit of the source that runs, with "-dirty" for changed files; None for an installed package."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _short(value: float) -> float:
    """Four significant digits: noise is larger than the rest."""
    return float(f"{value:.4g}")


def _runs(r: Result) -> str:
    """How many count, and of how many where others were left out."""
    if r.disturbed:
        return f"{r.runs} [yellow]disturbed[/]"
    return f"{r.runs} of {r.runs + r.disturbed_runs}" if r.disturbed_runs else str(r.runs)


def _or_blank(value: float | None) -> str:
    return "" if value is None else f"{value:g}"
