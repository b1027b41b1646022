"""`moemesh pack HF_DIR OUT`: a Hugging Face folder to a library."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from cluster.cli.output import print_json
from cluster.cli.progress import progress_bar
from cluster.config import MiB
from cluster.library.format import TRUNK_KINDS, Manifest
from cluster.library.manifest import digest
from cluster.library.pack import pack
from kernels import layout


def register(app: typer.Typer) -> None:
    app.command("pack")(pack_command)


def pack_command(
    hf_dir: Annotated[Path, typer.Argument(metavar="HF_DIR", help="folder of the checkpoint")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="folder of the new library")],
    experts: Annotated[
        str, typer.Option(help=f"variants of the experts, comma separated, of {', '.join(layout.KINDS)}")
    ] = "int8",
    trunk: Annotated[
        str | None,
        typer.Option(
            help=f"type of the trunk, of {', '.join(TRUNK_KINDS)} (int4 keeps the embedding in int8); "
            "the experts' type if that is a float, else int8"
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="name of the model; the checkpoint's own if left out")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the report as JSON")] = False,
) -> None:
    """Pack a Hugging Face checkpoint into a library that can be served."""
    kinds = [kind.strip() for kind in experts.split(",") if kind.strip()]
    with progress_bar("packing") as progress:
        manifest = pack(hf_dir, out, kinds, trunk, name, progress)
    if as_json:
        print_json(packed_json(manifest, out))
        return
    Console().print(report_table(manifest))
    typer.echo(
        f"{manifest.name} is in {out}, digest {digest(manifest)[:12]}; serve it: moemesh up --model {out}"
    )


def packed_json(manifest: Manifest, out: Path) -> dict[str, Any]:
    return {
        "library": str(out),
        "name": manifest.name,
        "digest": digest(manifest),
        "default_variant": manifest.default_variant,
        "result_type": manifest.result_type,
        **manifest.report,
    }


def report_table(manifest: Manifest) -> Table:
    """Sizes and quantisation errors of the trunk and every variant. Errors: squared error over energy."""
    table = Table(box=None, pad_edge=False)
    table.add_column("part")
    for column in ("MiB", "weights", "bits", "error", "worst", "to int8", "flat"):
        table.add_column(column, justify="right")
    report = manifest.report
    _row(table, f"trunk {manifest.trunk.kind}", report.get("trunk", {}))
    for variant, figures in report.get("experts", {}).items():
        _row(table, f"experts {variant}", figures)
    return table


def _row(table: Table, part: str, figures: Mapping[str, float]) -> None:
    if not figures:
        return
    table.add_row(
        part,
        f"{figures['bytes'] / MiB:.1f}",
        f"{figures['weights'] / 1e6:.1f} M",
        f"{figures['bits_per_weight']:.2f}",
        f"{figures['relative_error']:.1e}",
        f"{figures['worst_matrix_error']:.1e}",
        _share(figures, "int8_fallback_blocks"),
        _share(figures, "flattened_groups"),
    )


def _share(figures: Mapping[str, float], key: str) -> str:
    return f"{figures[key]:.2%}" if key in figures else ""
