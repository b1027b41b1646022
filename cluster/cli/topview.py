"""What `moemesh top` shows: a pure function of two samples of the controller's status and of the screen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cluster.balance.fleet import Floats, Integers
from cluster.balance.load import LoadStats
from cluster.balance.placement import PlacementTable
from cluster.cli.values import megabytes

LEVELS = " ▁▂▃▄▅▆▇█"
FULL = 4.0
"""Times the mean of its layer at which an expert's cell is full."""

HEAT = ("grey42", "blue", "dodger_blue2", "cyan", "green", "yellow", "dark_orange", "red", "bright_red")
"""By level, as LEVELS."""

LABEL = 5
"""Columns before the cells: the layer's number."""

OTHER_LINES = 7
"""Lines beside the heat map and the nodes."""

HOTTEST = 4
SHARE_CELLS = 20


@dataclass(frozen=True)
class Sample:
    """status: as the controller answers with detail. at: seconds on a monotonic clock."""

    status: dict[str, Any]
    at: float


@dataclass(frozen=True)
class Screen:
    """In characters. layer: which row of the heat map is selected."""

    width: int
    height: int
    layer: int = 0


def view(name: str, now: Sample, before: Sample | None, screen: Screen) -> RenderableType:
    """Everything, no wider and about as high as the screen. name: of the model."""
    status = now.status
    nodes = [member for member in status["members"] if member["role"] == "node"]
    parts: list[RenderableType] = [
        _line(_headline(name, status, rates(now, before)), screen),
        _line(_moves(status), screen),
        _line(f"last decision: {status['decision'] or 'none'} ({status['rebalance']})", screen),
        _nodes(nodes, screen),
    ]
    load, table = _load(status), _table(status)
    if load is None or table is None:
        parts.append(Text("no router has computed anything yet", style="dim"))
    else:
        copies = _copies(table, load.shape[1])
        parts += _heat(load, copies, screen, screen.height - len(nodes) - OTHER_LINES)
        parts.append(_line(_hottest(load, table, screen.layer), screen))
    parts.append(_line("q quit   ↑ ↓ layer   underlined: several copies", screen, "dim"))
    return Group(*parts)


def rates(now: Sample, before: Sample | None) -> tuple[float, float]:
    """Steps and rows per second of all routers together; NaN without an earlier sample."""
    if before is None or now.at <= before.at:
        return np.nan, np.nan
    counts = [[_counted(sample.status, key) for sample in (before, now)] for key in ("steps", "rows")]
    steps, rows = (max(last - first, 0) / (now.at - before.at) for first, last in counts)
    return steps, rows


def levels(load: Floats, columns: int) -> Integers:
    """[layers, cells] index into LEVELS. load: [layers, experts] rows; experts that share a cell show the
    hottest of them, so that there are at most `columns` cells; a full cell is FULL times the layer's mean."""
    mean = load.mean(axis=1, keepdims=True)
    times = np.divide(load, mean, out=np.zeros_like(load), where=mean > 0)
    hottest = np.maximum.reduceat(times, _firsts(load.shape[1], columns), axis=1)
    found: Integers = np.clip(np.ceil(hottest / FULL * (len(LEVELS) - 1)), 0, len(LEVELS) - 1).astype(
        np.int64
    )
    return found


def _firsts(experts: int, columns: int) -> Integers:
    """First expert of each cell."""
    per_cell = -(-experts // max(columns, 1))
    return np.arange(0, experts, per_cell)


def _line(text: str, screen: Screen, style: str = "") -> Text:
    line = Text(text, style=style, no_wrap=True)
    line.truncate(screen.width, overflow="ellipsis")
    return line


def _headline(name: str, status: dict[str, Any], speed: tuple[float, float]) -> str:
    steps, rows = speed
    pace = "" if np.isnan(steps) else f"  {steps:.1f} steps/s  {rows:.0f} rows/s"
    active = "" if status["active"] == status["version"] else " being loaded"
    return f"{name}  table {status['epoch']}.{status['version']}{active}{pace}"


def _moves(status: dict[str, Any]) -> str:
    pending = f"{status['pending']} tables to come" if status["pending"] else "no moves under way"
    return f"{status['replicated']} experts have several copies  {pending}"


def _nodes(nodes: list[dict[str, Any]], screen: Screen) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    for name in ("node", "of all rows", "", "experts", "resident", "queued"):
        table.add_column(name, justify="left" if name in ("node", "of all rows") else "right", no_wrap=True)
    for node in nodes:
        share = node["share"] or 0.0
        bar = "█" * round(share * SHARE_CELLS)
        style = "" if node["health"] == "alive" else "red"
        table.add_row(
            node["id"],
            Text(bar.ljust(SHARE_CELLS, "·"), style=style or "green"),
            f"{share:.0%}",
            str(node["experts"]),
            megabytes(node["stats"].get("resident_bytes", 0)),
            str(node["stats"].get("waiting_rows", 0)),
            style=style,
        )
    return table


def _heat(load: Floats, copies: Integers, screen: Screen, lines: int) -> list[Text]:
    """A line a layer, as many as there is room for, around the selected one."""
    columns = screen.width - LABEL
    found, firsts = levels(load, columns), _firsts(load.shape[1], columns)
    several = np.maximum.reduceat(copies, firsts, axis=1) > 1
    sparse = np.flatnonzero(copies.any(axis=1))
    at = int(np.argmin(np.abs(sparse - screen.layer)))
    room = max(min(lines, len(sparse)), 1)
    begin = min(max(at - room // 2, 0), len(sparse) - room)
    rows = []
    for layer in sparse[begin : begin + room]:
        line = Text(no_wrap=True)
        line.append(f"{layer:>4}", style="reverse" if layer == sparse[at] else "bold")
        line.append(" ")
        for level, more in zip(found[layer].tolist(), several[layer].tolist(), strict=True):
            line.append(LEVELS[level], style=HEAT[level] + (" underline" if more else ""))
        rows.append(line)
    return rows


def _hottest(load: Floats, table: PlacementTable, layer: int) -> str:
    """Of the selected layer: its hottest experts, times the mean, and who holds them."""
    sparse = [number for number, experts in enumerate(table.replicas) if experts]
    layer = min(sparse, key=lambda each: abs(each - layer))
    mean = load[layer].mean()
    if not mean:
        return f"layer {layer}: no rows yet"
    order = np.argsort(-load[layer], kind="stable")[:HOTTEST]
    each = [
        f"{expert} {load[layer, expert] / mean:.1f}× on "
        + "+".join(str(table.nodes[place]) for place in table.replicas[layer][expert])
        for expert in order.tolist()
    ]
    return f"layer {layer}: " + ", ".join(each)


def _load(status: dict[str, Any]) -> Floats | None:
    return None if status["load"] is None else LoadStats.from_wire(status["load"]).load


def _table(status: dict[str, Any]) -> PlacementTable | None:
    return None if status["table"] is None else PlacementTable.from_wire(status["table"])


def _copies(table: PlacementTable, experts: int) -> Integers:
    """[layers, experts] how many nodes hold it; zeros in dense layers."""
    return np.array(
        [[len(holders) for holders in layer] or [0] * experts for layer in table.replicas], np.int64
    )


def _counted(status: dict[str, Any], key: str) -> int:
    routers = (member for member in status["members"] if member["role"] == "router")
    return sum(int(router["stats"].get(key, 0)) for router in routers)
