"""`moemesh plan`: whether a fleet can serve a model, how fast, and what would make it faster."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cluster.cli.output import Progress, print_json, table_console
from cluster.cli.values import megabytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from cluster.experiments.capacity.forecast import Conditions, Forecast
    from cluster.experiments.capacity.needs import Needs, Node
    from cluster.fleet.file import FleetFile

FAILED = 1
MOST_PURCHASES = 4


def register(app: typer.Typer) -> None:
    app.command(help="Say whether a model fits a fleet, how fast it will be, what to buy next.")(plan)


def plan(
    model: Annotated[
        str, typer.Argument(help="Library folder on this machine, from `moemesh pack`; '': the bundled one.")
    ],
    fleet: Annotated[
        Path, typer.Option("--fleet", help="Fleet file; docs/fleet.md.", exists=True, dir_okay=False)
    ],
    streams: Annotated[int, typer.Option(min=1, max=1024, help="Sequences that run at once.")] = 16,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    from cluster.experiments.capacity.forecast import Conditions, fits
    from cluster.experiments.capacity.needs import assumed, nodes_of, router_link
    from cluster.experiments.sim.model import Router
    from cluster.fleet.file import load

    described = load(fleet)
    nodes = nodes_of(described)
    needs = _needs(model, described)
    routers = sum(host.routers for host in described.hosts)
    router = Router(bandwidth=router_link(described))
    under = Conditions(streams, routers, router, described.controller.min_replicas)
    with Progress() as progress:
        progress.phase("placing experts")
        room = fits(needs, nodes)
        found = _served(needs, nodes, under) if room else _refused(needs, nodes)
    found = _about(needs, described, assumed(described)) | {"fits": room} | found
    if as_json:
        print_json(found)
    else:
        _print(table_console(), found)
    if not room:
        raise typer.Exit(FAILED)


def _needs(model: str, fleet: FleetFile) -> Needs:
    """Reads the library's manifest only. Raises LibraryError."""
    import numpy as np

    from cluster.compute.weights import kv_dtype
    from cluster.experiments.capacity.needs import Needs
    from cluster.expert.mapping import PAGE
    from cluster.library.bundled import open_model
    from cluster.router.kv import page_bytes
    from kernels.layout import pad

    library = open_model(model)
    spec, trunk = library.spec, library.manifest.trunk
    sizes = np.zeros((spec.layers, spec.experts), np.int64)
    for layer, blobs in enumerate(library.variant(fleet.variant).blobs):
        sizes[layer, : len(blobs)] = [pad(ref.bytes, PAGE) for ref in blobs]
    page = page_bytes(spec, fleet.engine.page_tokens, kv_dtype(trunk.floating, fleet.engine.kv))
    weights = sum(blob.ref.bytes for blob in trunk.blobs())
    return Needs(library.name, sizes, spec.top_k, spec.hidden, spec.expert_width, weights, page)


def _about(needs: Needs, fleet: FleetFile, assumed: Sequence[str]) -> dict[str, Any]:
    tokens = fleet.engine.kv_bytes // needs.page_bytes * fleet.engine.page_tokens
    return {
        "model": needs.name,
        "fleet": fleet.name,
        "expert_bytes": int(needs.expert_bytes.sum()),
        "memory_bytes": sum(host.memory_bytes for host in fleet.nodes),
        "router_bytes": needs.trunk_bytes + fleet.engine.kv_bytes,
        "kv_tokens": tokens,
        "assumed": list(assumed),
    }


def _refused(needs: Needs, nodes: Sequence[Node]) -> dict[str, Any]:
    from cluster.experiments.capacity.forecast import missing_bytes
    from cluster.experiments.capacity.purchases import machines_to_fit

    needed = machines_to_fit(needs, nodes)
    machines = None if needed is None else {"like": needed[0].name, "count": needed[1]}
    return {"missing_bytes": max(0, missing_bytes(needs, nodes)), "machines": machines}


def _served(needs: Needs, nodes: Sequence[Node], under: Conditions) -> dict[str, Any]:
    from dataclasses import asdict, replace

    from cluster.experiments.capacity.forecast import forecast
    from cluster.experiments.capacity.purchases import binding, purchases

    alone, together = (forecast(needs, nodes, replace(under, streams=each)) for each in (1, under.streams))
    better = purchases(needs, nodes, under)
    binds = binding(better)
    return {
        "streams": under.streams,
        "tokens_per_s": {"1": alone.tokens_per_s, str(under.streams): together.tokens_per_s},
        "bound_tokens_per_s": {"1": alone.bound, str(under.streams): together.bound},
        "nodes": [_node(needs, node, together, number) for number, node in enumerate(nodes)],
        "copies": {"least": _copies(together)[0], "most": _copies(together)[1]},
        "placement": [
            [[nodes[device].name for device in expert.nonzero()[0]] for expert in layer]
            for layer in together.placement.hosts
        ],
        "binds": None if binds is None else binds.resource,
        "purchases": [asdict(each) for each in better],
    }


def _copies(found: Forecast) -> tuple[int, int]:
    counts = found.placement.hosts.sum(axis=2)
    return int(counts[counts > 0].min()), int(counts.max())


def _node(needs: Needs, node: Node, found: Forecast, number: int) -> dict[str, Any]:
    held = found.placement.device_bytes(needs.expert_bytes)[number]
    return {
        "name": node.name,
        "device": node.kind,
        "experts": int(found.placement.hosts[:, :, number].sum()),
        "held_bytes": int(held),
        "memory_bytes": node.device.memory,
        "out_bytes_per_token": float(found.out_bytes[number]),
        "back_bytes_per_token": float(found.back_bytes[number]),
        "link_bytes_per_s": node.device.bandwidth,
    }


def _print(console: Console, found: dict[str, Any]) -> None:
    console.print(
        f"{found['model']} on {found['fleet']}: experts {megabytes(found['expert_bytes'])}, memory for them "
        f"{megabytes(found['memory_bytes'])}; a router needs {megabytes(found['router_bytes'])} "
        f"({found['kv_tokens']:,} tokens of KV cache)"
    )
    if found["assumed"]:
        console.print(f"no device class given for {', '.join(found['assumed'])}: taken as n100")
    if not found["fits"]:
        console.print(_missing(found))
        return
    _print_nodes(console, found)
    for streams, speed in found["tokens_per_s"].items():
        bound = found["bound_tokens_per_s"][streams]
        console.print(
            f"{streams} stream{'s'[: streams != '1']}: {speed:,.0f} tokens/s expected, "
            f"experts and links alone allow {bound:,.0f}"
        )
    _print_purchases(console, found["binds"], found["purchases"])


def _missing(found: dict[str, Any]) -> str:
    bytes_, machines = found["missing_bytes"], found["machines"]
    missing = f"{megabytes(bytes_)} more" if bytes_ else "nodes with more room"
    buy = f"{machines['count']} more like {machines['like']}" if machines else "larger machines"
    return (
        f"it does not fit: one copy of every expert needs {missing}; buy {buy}, or pack the experts smaller"
    )


def _print_nodes(console: Console, found: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("node")
    table.add_column("device")
    for column in ("experts", "held", "of", "sent a token", "back", "of the link"):
        table.add_column(column, justify="right")
    speed = found["tokens_per_s"][str(found["streams"])]
    for node in found["nodes"]:
        out, back = node["out_bytes_per_token"], node["back_bytes_per_token"]
        busy = speed * max(out, back) / node["link_bytes_per_s"]
        table.add_row(
            node["name"],
            node["device"],
            str(node["experts"]),
            megabytes(node["held_bytes"]),
            megabytes(node["memory_bytes"]),
            f"{out / 1e3:,.1f} kB",
            f"{back / 1e3:,.1f} kB",
            f"{busy:.0%}",
        )
    console.print(table)
    least, most = found["copies"]["least"], found["copies"]["most"]
    console.print(f"every expert has {least} to {most} copies; --json says where each is")


def _print_purchases(console: Console, binds: str | None, found: list[dict[str, Any]]) -> None:
    console.print(f"what binds: {binds or 'nothing by itself; several resources together'}")
    for each in found[:MOST_PURCHASES]:
        console.print(f"  {each['what']}: {each['gain']:.2f} × the tokens/s")
