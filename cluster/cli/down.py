"""`moemesh down`: stop the cluster that `moemesh up` started."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from cluster.cli import upfleet
from cluster.cli.output import Progress, print_json
from cluster.cli.upfleet import Fleet


def register(app: typer.Typer) -> None:
    app.command(help="Stop the cluster that `moemesh up` started.")(down)


def down(
    fleet: Fleet = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    if fleet is not None:
        upfleet.down(fleet, as_json)
        return
    from cluster.fleet import stop
    from cluster.fleet.folder import Folder

    begin = time.monotonic()
    with Progress() as progress:
        progress.phase("stopping")
        stop.down(Folder())
    seconds = time.monotonic() - begin
    if as_json:
        print_json({"stopped": True, "seconds": round(seconds, 2)})
    else:
        typer.echo(f"stopped after {seconds:.1f} s; every process and port is free")
