"""`moemesh doctor`: what this machine computes with, and whether it gives the right bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from cluster.cli import doctorfleet
from cluster.cli.options import AsJson
from cluster.cli.output import print_json, table_console
from cluster.cli.progress import progress_bar
from cluster.cli.upfleet import Fleet
from cluster.errors import MoemeshError, Unavailable

if TYPE_CHECKING:
    from cluster.fleet.folder import Folder
    from kernels.jit import Warmth

WARM = "`moemesh doctor --warm` compiles the rest"


@dataclass(frozen=True)
class Finding:
    """One line of the report. good: None where there is nothing to judge; values: the same for --json."""

    name: str
    text: str
    values: Any
    good: bool | None = None


def register(app: typer.Typer) -> None:
    app.command(help="Check this machine: CPU, kernels, and whether they give the right bits.")(doctor)


def doctor(
    fleet: Fleet = None,
    warm: Annotated[bool, typer.Option("--warm", help="Compile every kernel that is not cached.")] = False,
    as_json: AsJson = False,
) -> None:
    if fleet is not None:
        doctorfleet.doctor(fleet, as_json)
    findings = [*machine(), *kernels(warm), *gateways()]
    ok = all(finding.good is not False for finding in findings)
    if as_json:
        print_json({"ok": ok} | {finding.name: finding.values for finding in findings})
    else:
        table_console().print(_table(findings))
    raise typer.Exit(0 if ok else 1)


def machine() -> list[Finding]:
    """The processor, and the compiler that makes the kernels for it."""
    from cluster.cli import report

    here = report.machine()
    versions = {name: here["versions"][name] for name in ("moemesh", "python", "numba", "llvmlite")}
    features = " ".join(here["features"]) or "none that the kernels use"
    cpu = {name: here[name] for name in ("cpu", "cores", "features")}
    return [
        Finding("machine", f"{here['cpu']}, {here['cores']} cores; {features}", cpu),
        Finding("versions", ", ".join(f"{name} {version}" for name, version in versions.items()), versions),
    ]


def kernels(warm: bool) -> list[Finding]:
    """Instruction set, cache and bits. The bits are compared once every kernel is there without compiling,
    or with `warm`, which compiles them."""
    try:
        from kernels import jit
        from kernels.warm import compile_all
    except ValueError as error:  # $MOEMESH_ISA names no instruction set
        raise MoemeshError(f"{error}; unset it or correct it") from None
    findings = [
        _instruction_set(jit.ISA, jit.better_isas()),
        Finding("cache", str(jit.cache_dir()), str(jit.cache_dir())),
    ]
    if not warm:
        found, total = jit.cached()
        if found < total:
            text = f"{found} of {total} variants are compiled; {WARM}"
            return [*findings, Finding("kernels", text, {"variants": total, "cached": found})]
    with progress_bar("compiling") as progress:
        warmth = compile_all(progress, apart=True)
    return [*findings, _compiled(warmth), _bits()]


def gateways() -> list[Finding]:
    """Those of the cluster that is up here, and whether a token can be had from each; none without one."""
    from cluster.fleet.folder import Folder

    folder = Folder()
    record = folder.read()
    if record is None or record.phase != "up" or not record.alive():
        return []
    members = _members(folder, record.controller)
    return [_gateways(record.gateways(), members)]


def _members(folder: Folder, controller: str) -> list[dict[str, Any]]:
    """None while the controller does not answer."""
    from cluster.fleet.ask import Controller

    with Controller(controller, folder) as asked:
        try:
            found: list[dict[str, Any]] = asked.status()["members"]
        except Unavailable:
            return []
        return found


def _gateways(listen: list[dict[str, str]], members: list[dict[str, Any]]) -> Finding:
    """listen: as `Record.gateways`."""
    ready = {one["address"] for one in members if one["ready"] and one["health"] == "alive"}
    values = [one | {"ready": one["grpc"] in ready} for one in listen]
    said = ", ".join(one["grpc"] + ("" if one["grpc"] in ready else " (not ready)") for one in listen)
    good = all(one["ready"] for one in values)
    text = said if good else f"{said}; `moemesh status` shows which roles are away"
    return Finding("gateways", text, values, good)


def _instruction_set(isa: str, better: dict[str, str]) -> Finding:
    reasons = "; ".join(f"not {name}: {reason}" for name, reason in better.items())
    return Finding(
        "instruction_set",
        f"{isa} ({reasons or 'the best that the kernels know'})",
        {"chosen": isa, "better": better},
    )


def _compiled(warmth: Warmth) -> Finding:
    total = warmth.loaded + warmth.compiled
    return Finding(
        "kernels",
        f"{total} variants: {warmth.loaded} from the cache, {warmth.compiled} compiled now",
        {"variants": total, "cached": warmth.loaded, "compiled": warmth.compiled},
        good=True,
    )


def _bits() -> Finding:
    from kernels import selfcheck

    count, wrong = len(selfcheck.stored()), selfcheck.wrong_bits()
    text = f"{count} cases give the bits of the manifest"
    if wrong:
        text = (
            f"other bits than the manifest's from {', '.join(wrong)}: results differ from those of other "
            "machines; use the versions of numba and llvmlite that this release was tested with"
        )
    return Finding("bits", text, {"checked": count, "wrong": wrong}, good=not wrong)


def _table(findings: list[Finding]) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column()
    table.add_column()
    table.add_column(overflow="fold")
    for finding in findings:
        mark = {None: "", True: "[green]✓[/]", False: "[red]✗[/]"}[finding.good]
        table.add_row(mark, finding.name.replace("_", " "), finding.text)
    return table
