"""`moemesh rebalance`: place the experts for the load of late, and move them while the cluster serves."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.cli.output import print_json, table_console
from cluster.cli.values import megabytes
from cluster.errors import Unavailable

if TYPE_CHECKING:
    from rich.console import Console

    from cluster.fleet.ask import Controller

POLL_S = 0.2
MOVED_WITHIN_S = 600.0
MOST_LINES = 20
"""Moves that are listed one by one; --json lists all."""


def register(app: typer.Typer) -> None:
    app.command(help="Move experts, and copy hot ones, to where the load of late says.")(rebalance)


def rebalance(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and what it would gain; move nothing.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Move even if it does not pay within 1000 steps.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    from cluster.fleet.ask import Controller
    from cluster.fleet.folder import Folder

    folder = Folder()
    with Controller(folder.require().controller, folder) as controller:
        found = controller.rebalance(dry_run=dry_run, force=force)
        if not as_json:
            _print(table_console(), found, dry_run)
        if found["started"]:
            found["table"] = _wait(controller)
    if as_json:
        print_json(found)
    elif found["started"]:
        table_console().print(f"placement table {found['table']} is in use")


def _wait(controller: Controller) -> str:
    """Until the last table is in use and old copies may go; returns its epoch and version."""
    from cluster.fleet.ask import moved

    deadline = time.monotonic() + MOVED_WITHIN_S
    while time.monotonic() < deadline:
        status = controller.status()
        if moved(status):
            return table_of(status)
        time.sleep(POLL_S)
    raise Unavailable(f"the moves go on after {MOVED_WITHIN_S:g} s; see `moemesh status`")


def table_of(status: dict[str, Any]) -> str:
    return f"{status['epoch']}.{status['version']}"


def _print(console: Console, found: dict[str, Any], dry_run: bool) -> None:
    now, then = found["now"], found["then"]
    for name, quality in (("now", now), ("then", then)):
        console.print(
            f"{name:>4}: {1e3 * quality['step_s']:.3f} ms of expert work a step, no placement below "
            f"{1e3 * quality['bound_s']:.3f} ms; balancedness {quality['balancedness']:.3f} of at most "
            f"{quality['attainable']:.3f} with {quality['copies']:.0f} copies"
        )
    console.print(
        f"gain {1e3 * found['gain_s']:.3f} ms a step, cost {1e3 * found['cost_s']:.1f} ms: "
        f"{megabytes(found['bytes'])} in {len(found['stages'])} stages, {found['seconds']:.1f} s"
    )
    moves = [
        f"{verb} expert {move['expert']} of layer {move['layer']} {word} {move['where']}"
        for stage in found["stages"]
        for verb, word, moves in (("load", "on", stage["loads"]), ("drop", "from", stage["drops"]))
        for move in moves
    ]
    for line in moves[:MOST_LINES]:
        console.print(f"  {line}")
    if len(moves) > MOST_LINES:
        console.print(f"  … and {len(moves) - MOST_LINES} more; --json lists them")
    for refused in found["refused"]:
        console.print(f"  stays: expert {refused['expert']} of layer {refused['layer']}: {refused['where']}")
    console.print(_verdict(found, dry_run))


def _verdict(found: dict[str, Any], dry_run: bool) -> str:
    if not found["stages"]:
        return "the experts are where they should be"
    if found["started"]:
        return "moving, while the cluster serves"
    if found["worth"]:
        return "it pays; without --dry-run it is done" if dry_run else "not started"
    return "it does not pay, so nothing is moved; --force moves anyway"
