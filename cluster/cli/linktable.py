"""The links of a fleet as matrices: a row for each host that sends, a column for each that it sends to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from cluster.fleet.links.judge import figure

if TYPE_CHECKING:
    from cluster.fleet.links.survey import Direction

NOTHING = "–"
LATENCY, BANDWIDTH = "round trip, ms: median / p99", "bandwidth, Mbit/s"


def matrices(hosts: Sequence[str], directions: Sequence[Direction]) -> Iterator[Table]:
    """None where there are no links."""
    if directions:
        yield _matrix(LATENCY, hosts, directions, _latency)
        yield _matrix(BANDWIDTH, hosts, directions, _bandwidth)


def _matrix(
    title: str, hosts: Sequence[str], directions: Sequence[Direction], cell: Callable[[Direction], str]
) -> Table:
    cells = {(one.source, one.target): cell(one) for one in directions}
    table = Table(title=f"\n{title}", title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.add_column("from \\ to", no_wrap=True)
    for host in hosts:
        table.add_column(host, justify="right", no_wrap=True)
    for source in hosts:
        row = ("" if source == target else cells.get((source, target), NOTHING) for target in hosts)
        table.add_row(source, *row)
    return table


def _latency(one: Direction) -> str:
    if one.median_s is None or one.p99_s is None:
        return NOTHING
    return f"{figure(1e3 * one.median_s)} / {figure(1e3 * one.p99_s)}"


def _bandwidth(one: Direction) -> str:
    return NOTHING if one.bytes_per_s is None else figure(8e-6 * one.bytes_per_s)
