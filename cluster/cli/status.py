"""`moemesh status`: who is there, what they hold, how busy they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from cluster.cli import upfleet
from cluster.cli.output import print_json, table_console
from cluster.cli.upfleet import Fleet
from cluster.cli.values import megabytes

if TYPE_CHECKING:
    from cluster.fleet.folder import Folder, Record

Member = dict[str, Any]


def register(app: typer.Typer) -> None:
    app.command(help="Show nodes, routers, gateways and the placement table.")(status)


def status(
    fleet: Fleet = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    if fleet is not None:
        upfleet.status(fleet, as_json)
        return
    from cluster.fleet.ask import Controller
    from cluster.fleet.folder import Folder

    folder = Folder()
    record = folder.require()
    changing = _changing(folder)
    with Controller(record.controller, folder) as controller:
        found = controller.status()
    if as_json:
        print_json(_as_json(record, found) | {"changing": changing})
    else:
        _print(record, found)
        if changing:
            typer.echo(changing)


def _changing(folder: Folder) -> str:
    """On a fleet's head, while it has two models."""
    from cluster.fleet.generations import read

    now = read(folder)
    if now is None or now.other is None:
        return ""
    return f"the model is being changed: {now.active.told} is active, {now.other.told} has roles, too"


def _as_json(record: Record, found: dict[str, Any]) -> dict[str, Any]:
    return {
        "grpc": record.grpc,
        "http": record.http_url,
        "model": record.model,
        "variant": record.variant,
        "software": found.get("software", ""),
        "addresses": record.gateways(),
        "table": {"epoch": found["epoch"], "version": found["version"], "active": found["active"]},
        "replicated": found["replicated"],
        "pending": found["pending"],
        "rebalance": found["rebalance"],
        "decision": found["decision"],
        "nodes": _of(found, "node"),
        "routers": _of(found, "router"),
        "gateways": _of(found, "gateway"),
    }


def _print(record: Record, found: dict[str, Any]) -> None:
    console = table_console()
    http = f" and {record.http_url}" if record.http else ""
    active = "active" if found["active"] == found["version"] else "being loaded"
    console.print(
        f"{record.model} ({record.variant}) at {record.grpc}{http}, "
        f"placement table {found['epoch']}.{found['version']} {active}{_copies(found)}"
    )
    if said := _versions(found):
        console.print(said)
    if found["decision"]:
        console.print(f"experts are placed {_BY[found['rebalance']]}; last: {found['decision']}")
    for kind, columns in (("node", _NODE), ("router", _ROUTER), ("gateway", _GATEWAY)):
        console.print(_table(kind, columns, _of(found, kind)))


def _copies(found: dict[str, Any]) -> str:
    copies = f", {found['replicated']} experts have several copies" if found["replicated"] else ""
    return copies + (f", {found['pending']} changes to come" if found["pending"] else "")


def _versions(found: dict[str, Any]) -> str:
    """In the middle of an upgrade. Old ones do not tell theirs."""
    running = {one.get("software", "") for one in (found, *found["members"])}
    named = ", ".join(version or "one that does not tell" for version in sorted(running))
    return f"several versions of moemesh run: {named}" if len(running) > 1 else ""


_BY = {"auto": "by the controller itself", "manual": "when asked to"}


def _of(found: dict[str, Any], role: str) -> list[Member]:
    return [member for member in found["members"] if member["role"] == role]


def _table(kind: str, columns: dict[str, Callable[[Member], object]], members: list[Member]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in (kind, "state", "address", *columns):
        table.add_column(name, justify="right" if name in columns else "left")
    for member in members:
        values = [read(member) for read in columns.values()]
        table.add_row(member["id"], _state(member), member["address"], *map(str, values))
    return table


def _state(member: Member) -> str:
    if member["error"] is not None and not member["ready"]:
        return f"failed: {member['error'][1]}"
    if member["health"] != "alive":
        return str(member["health"])
    if member.get("drained"):
        return "draining" if member["stats"].get("held") else "drained"
    if member["error"] is not None:
        return f"ready, but cannot load more: {member['error'][1]}"
    return "ready" if member["ready"] else "starting"


def _count(name: str) -> Callable[[Member], object]:
    return lambda member: member["stats"].get(name, "–")


def _resident(member: Member) -> str:
    return megabytes(member["stats"].get("resident_bytes", 0))


def _kv(member: Member) -> str:
    stats = member["stats"]
    return (
        f"{stats.get('kv_pages_used', 0)}/{stats.get('kv_pages_total', 0)} {stats.get('kv_type', '')} pages"
    )


def _prefixes(member: Member) -> str:
    """Prompt tokens that were there already, of all that might have been."""
    asked = member["stats"].get("prefix_tokens", 0)
    return f"{100 * member['stats']['prefix_hits'] / asked:.0f} %" if asked else "–"


def _share(member: Member) -> str:
    return "–" if member["share"] is None else f"{100 * member['share']:.0f} %"


_NODE: dict[str, Callable[[Member], object]] = {
    "experts": lambda member: member["experts"],
    "of all rows": _share,
    "resident": _resident,
    "queued rows": _count("waiting_rows"),
    "rows done": _count("rows"),
    "restarts": _count("restarts"),
}
_ROUTER: dict[str, Callable[[Member], object]] = {
    "running": _count("running"),
    "waiting": _count("waiting"),
    "KV": _kv,
    "prefix hits": _prefixes,
    "steps": _count("steps"),
    "restarts": _count("restarts"),
}
_GATEWAY: dict[str, Callable[[Member], object]] = {
    "HTTP": lambda member: member["stats"].get("http") or "–",
    "routers": _count("routers"),
    "streams": _count("outstanding"),
    "queued": _count("queued"),
    "restarts": _count("restarts"),
}
