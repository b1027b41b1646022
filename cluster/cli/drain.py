"""`moemesh drain`: take all experts off a node while the cluster serves, and keep it free of them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.cli.output import Progress, print_json, table_console
from cluster.cli.rebalance import MOVED_WITHIN_S, POLL_S, table_of
from cluster.cli.values import megabytes
from cluster.errors import Unavailable

if TYPE_CHECKING:
    from cluster.fleet.ask import Controller


def register(app: typer.Typer) -> None:
    app.command(help="Move all experts off a node, and place none there until --undo.")(drain)


def drain(
    node: Annotated[str, typer.Argument(metavar="NODE", help="As `moemesh status` names it.")],
    undo: Annotated[bool, typer.Option("--undo", help="Let the node hold experts again.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    from cluster.fleet.ask import Controller
    from cluster.fleet.folder import Folder

    folder = Folder()
    with Controller(folder.require().controller, folder) as controller:
        found = controller.undrain(node) if undo else _drain(controller, node)
    if as_json:
        print_json(found)
    else:
        table_console().print(_undone(node) if undo else _done(found))


def _drain(controller: Controller, node: str) -> dict[str, Any]:
    """The plan, and how it went: `table` and `took_s`."""
    begin = time.monotonic()
    found = controller.drain(node)
    with Progress() as progress:
        status = _wait(controller, node, progress)
    return found | {"table": table_of(status), "took_s": round(time.monotonic() - begin, 2)}


def _wait(controller: Controller, node: str, progress: Progress) -> dict[str, Any]:
    """Until the node holds nothing and no router asks it for anything; returns the last status."""
    from cluster.fleet.ask import moved

    deadline = time.monotonic() + MOVED_WITHIN_S
    while True:
        status = controller.status()
        held = next((int(m["stats"].get("held", 0)) for m in status["members"] if m["id"] == node), 0)
        if held == 0 and moved(status):
            return status
        if time.monotonic() > deadline:
            raise Unavailable(
                f"{node} still holds {held} experts after {MOVED_WITHIN_S:g} s; the moves go on, see "
                "`moemesh status`"
            )
        progress.phase(f"{node} holds {held} experts, {status['pending']} tables to come")
        time.sleep(POLL_S)


def _done(found: dict[str, Any]) -> str:
    node, loads = found["node"], sum(len(stage["loads"]) for stage in found["stages"])
    moves = "it held nothing"
    if loads:
        moves = f"{loads} experts ({megabytes(found['bytes'])}) were loaded elsewhere"
    return (
        f"{node} is drained after {found['took_s']:.1f} s: {moves}; "
        f"placement table {found['table']} is in use\n"
        f"its process may be stopped; `moemesh drain {node} --undo` lets it hold experts again"
    )


def _undone(node: str) -> str:
    return f"{node} may hold experts again; `moemesh rebalance --force` gives it some now"
