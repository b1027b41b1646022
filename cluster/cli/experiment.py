"""`moemesh experiment run SPEC` and `moemesh experiment report DIR`."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

import cluster.experiments
from cluster.cli.options import AsJson
from cluster.cli.output import Progress, print_json, table_console
from cluster.cli.progress import progress_bar
from cluster.errors import MoemeshError
from cluster.experiments.extras import require_extras

SPECS = Path(cluster.experiments.__file__).parent / "specs"
READY = tuple(sorted(path.stem for path in SPECS.glob("*.yaml")))
"""Specs that come with the package; docs/experiments.md shows what they give."""


def register(app: typer.Typer) -> None:
    verbs = typer.Typer(help="Try policies on traces and fleets, in simulation.", no_args_is_help=True)
    verbs.callback()(require_extras)
    verbs.command("run")(run_command)
    verbs.command("report")(report_command)
    app.add_typer(verbs, name="experiment")


def run_command(
    spec: Annotated[str, typer.Argument(metavar="SPEC", help=f"YAML file, or one of {', '.join(READY)}.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the results; experiments/NAME if absent.")
    ] = None,
    jobs: Annotated[int, typer.Option(help="Runs at a time; 0 takes a core each.", min=0)] = 0,
    live: Annotated[
        bool, typer.Option("--live", help="On real clusters of this machine, one run at a time.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Carry out an experiment: policies × traces × fleets × seeds. Runs that OUT has already are not
    repeated.
    """
    from cluster.cli.report import git_revision, machine
    from cluster.experiments.report import write_report
    from cluster.experiments.runs import sweep
    from cluster.experiments.spec import read_spec

    asked = read_spec(_file(spec))
    if live:
        asked = replace(asked, live=True)
    if asked.live:
        jobs = 1
    folder = out or Path("experiments") / asked.name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "experiment.json").write_text(json.dumps({"name": asked.name, "title": asked.title}))
    provenance = {"git": git_revision(), "machine": machine()}
    with progress_bar("experiment") as report:
        swept = sweep(asked, folder, provenance, jobs or os.cpu_count() or 1, report)
    write_report(folder)
    if as_json:
        print_json({"out": str(folder), "done": swept.done, "skipped": swept.skipped, "failed": swept.failed})
        raise typer.Exit(1 if swept.failed else 0)
    _show(folder)
    if swept.failed:
        run, words = next(iter(swept.failed.items()))
        raise MoemeshError(f"{len(swept.failed)} runs failed; {run}: {words}")


def _file(spec: str) -> Path:
    """Raises typer.BadParameter for what is neither a file nor the name of a ready spec."""
    path = SPECS / f"{spec}.yaml" if spec in READY else Path(spec)
    if not path.is_file():
        raise typer.BadParameter(f"there is no file {spec!r}", param_hint="SPEC")
    return path


def report_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of an experiment.")],
    as_json: AsJson = False,
) -> None:
    """Write DIR/report.html and its pictures anew from the results."""
    from cluster.experiments.report import write_report

    with Progress() as progress:
        progress.phase("drawing")
        written = write_report(folder)
    if as_json:
        print_json({"written": [str(path) for path in written], "figures": _figures(folder)})
        return
    _show(folder)


def _figures(folder: Path) -> list[dict[str, object]]:
    """Per trace, fleet and policy every figure's mean, interval and number of samples; null where it has
    none.
    """
    from cluster.experiments.report import read_results
    from cluster.experiments.statistics import summarise

    return [
        {"trace": trace, "fleet": fleet, "policy": policy}
        | {name: asdict(each) if each.samples else None for name, each in found.items()}
        for (trace, fleet, policy), found in summarise(read_results(folder)).items()
    ]


def _show(folder: Path) -> None:
    """The main figures as a table, and where the page is."""
    from cluster.experiments.report import TITLES, UNITS, read_results
    from cluster.experiments.statistics import summarise

    names = ("balancedness", "tokens_per_s", "p50_ms", "p99_ms", "moved_bytes")
    table = Table(
        "trace", "fleet", "policy", *(TITLES[name] for name in names), box=None, header_style="bold"
    )
    for key, found in summarise(read_results(folder)).items():
        table.add_row(*key, *(f"{found[name].mean * UNITS.get(name, 1):.4g}" for name in names))
    table_console().print(table)
    typer.echo(f"report: {folder / 'report.html'}")
