"""`moemesh doctor --fleet FILE`: every host of a fleet, side by side."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import typer
from rich.table import Table

from cluster.cli.output import Progress, print_json, table_console


def doctor(file: Path, as_json: bool) -> None:
    from cluster.fleet.checkup import ask, judge
    from cluster.fleet.file import load
    from cluster.fleet.signals import Signals

    fleet = load(file)
    with Progress() as progress, Signals() as signals:
        reports = ask(fleet, progress, signals)
    found = judge(fleet, reports)
    ok = all(one.good is not False for one in found)
    if as_json:
        hosts = {name: dataclasses.asdict(report) for name, report in reports.items()}
        print_json({"ok": ok, "hosts": hosts, "findings": [dataclasses.asdict(one) for one in found]})
        raise typer.Exit(0 if ok else 1)
    table = Table(show_header=False, box=None, pad_edge=False)
    for _ in range(4):
        table.add_column(overflow="fold")
    for one in found:
        mark = {None: "", True: "[green]✓[/]", False: "[red]✗[/]"}[one.good]
        table.add_row(one.host, mark, one.name, f"{one.text}; {one.fix}" if one.fix else one.text)
    table_console().print(table)
    raise typer.Exit(0 if ok else 1)
