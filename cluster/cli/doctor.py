"""`moemesh doctor`: what is wrong with this machine: what it computes with, its limits, disk, clock, bits."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from cluster.cli import doctorfleet
from cluster.cli.doctormarks import mark, with_fix
from cluster.cli.options import AsJson
from cluster.cli.output import folding_console, print_json
from cluster.cli.progress import progress_bar
from cluster.cli.upfleet import Fleet
from cluster.errors import MoemeshError, Unavailable
from cluster.fleet.findings import Finding

if TYPE_CHECKING:
    from cluster.fleet.folder import Folder
    from kernels.jit import Warmth

WARM = "`moemesh doctor --warm` compiles the rest"
VERSIONS = ("moemesh", "python", "ray", "numba", "llvmlite", "numpy")


def register(app: typer.Typer) -> None:
    app.command(help="Check this machine, or with --fleet every host and the links between them.")(doctor)


def doctor(
    fleet: Fleet = None,
    warm: Annotated[bool, typer.Option("--warm", help="Compile every kernel that is not cached.")] = False,
    as_json: AsJson = False,
) -> None:
    if fleet is not None:
        doctorfleet.doctor(fleet, as_json)
    computing = kernels(warm)  # first: it says what is wrong where kernels cannot be imported at all
    from cluster.fleet.condition import condition
    from cluster.fleet.folder import Folder

    findings = [*machine(), *condition(Folder()), *computing, *gateways()]
    ok = all(finding.good is not False for finding in findings)
    if as_json:
        print_json({"ok": ok} | {one.name: one.values for one in findings} | {"findings": _said(findings)})
    else:
        folding_console().print(_table(findings))
    raise typer.Exit(0 if ok else 1)


def machine() -> list[Finding]:
    """The processor, and what computes and talks on it."""
    from cluster.cli import report
    from cluster.types import NUMERICS_VERSION

    here = report.machine()
    versions = {name: here["versions"][name] for name in VERSIONS} | {"numerics": str(NUMERICS_VERSION)}
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
            text, values = f"{found} of {total} variants are compiled", {"variants": total, "cached": found}
            return [*findings, Finding("kernels", text, values, fix=WARM)]
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
    return Finding(
        "gateways", said, values, good, "" if good else "`moemesh status` shows which roles are away"
    )


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
    fix = ""
    if wrong:
        text = f"other bits than the manifest's from {', '.join(wrong)}: results differ from other machines'"
        fix = "use the versions of numba and llvmlite that this release was tested with"
    return Finding("bits", text, {"checked": count, "wrong": wrong}, not wrong, fix)


def _said(findings: list[Finding]) -> list[dict[str, Any]]:
    """The report without the values, which stand under their own names."""
    return [{name: value for name, value in asdict(one).items() if name != "values"} for one in findings]


def _table(findings: list[Finding]) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column()
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for one in findings:
        table.add_row(mark(one.good, one.fix), one.name.replace("_", " "), with_fix(one.text, one.fix))
    return table
