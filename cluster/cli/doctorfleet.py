"""`moemesh doctor --fleet FILE`: every host of a fleet side by side, and the links between them."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table

from cluster.cli.doctormarks import mark, with_fix
from cluster.cli.output import Progress, folding_console, print_json

if TYPE_CHECKING:
    from cluster.fleet.checkup import Checkup
    from cluster.fleet.findings import Advice


def doctor(file: Path, as_json: bool) -> None:
    from cluster.cli.linktable import matrices
    from cluster.fleet.checkup import examine, judge
    from cluster.fleet.file import load
    from cluster.fleet.signals import Signals

    fleet = load(file)
    with Progress() as progress, Signals() as signals:
        found = examine(fleet, progress, signals)
    advice = judge(fleet, found)
    ok = all(one.good is not False for one in advice)
    if as_json:
        print_json({"ok": ok} | _values(found) | {"findings": [asdict(one) for one in advice]})
    else:
        console = folding_console()
        for each in (_table(advice), *matrices(list(found.survey.seats), found.survey.directions)):
            console.print(each)
    raise typer.Exit(0 if ok else 1)


def _values(found: Checkup) -> dict[str, Any]:
    """hosts: reports, and how far their clocks are from this machine's. links: seconds, bytes per second."""
    hosts: dict[str, Any] = {name: {"report": report} for name, report in found.reports.items()}
    for name, seat in found.survey.seats.items():
        clock = {"clock_s": seat.skew.ahead_s, "clock_error_s": seat.skew.error_s}
        hosts[name] |= clock | {"up": seat.up, "ports": dict(seat.ports)}
    return {"hosts": hosts, "failed": dict(found.failed), "links": list(map(asdict, found.survey.directions))}


def _table(advice: list[Advice]) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False)
    for _ in range(3):
        table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for one in advice:
        table.add_row(one.host, mark(one.good, one.fix), one.name, with_fix(one.text, one.fix))
    return table
