"""`moemesh library info DIR` and `moemesh library verify DIR`; library_transfer.py has serve and fetch."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from cluster.cli import library_transfer
from cluster.cli.output import print_json
from cluster.cli.pack import report_table
from cluster.cli.progress import progress_bar
from cluster.errors import IncompleteLibrary
from cluster.library.format import LIBRARY_VERSION
from cluster.library.reader import Library
from cluster.library.verify import verify
from cluster.types import NUMERICS_VERSION

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="folder of the library")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON")]

SHAPE = ("layers", "hidden", "heads", "kv_heads", "vocab", "context", "experts", "top_k", "expert_width")
"""What `info` shows of a model's spec."""


def register(app: typer.Typer) -> None:
    verbs = typer.Typer(help="Look at packed models, and move them.", no_args_is_help=True)
    verbs.command("info")(info_command)
    verbs.command("verify")(verify_command)
    library_transfer.register(verbs)
    app.add_typer(verbs, name="library")


def info_command(folder: Folder, as_json: AsJson = False) -> None:
    """Say what a library holds: the model, its variants, sizes and quantisation errors."""
    library = Library.open(folder)
    values = library_info(library)
    if as_json:
        print_json(values)
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column()
    table.add_column(overflow="fold")
    for key, value in values.items():
        if not isinstance(value, dict):
            table.add_row(key.replace("_", " "), _text(value))
    for key in SHAPE:
        table.add_row(key.replace("_", " "), str(values["spec"][key]))
    Console().print(table, report_table(library.manifest))


def _text(value: object) -> str:
    match value:
        case bool():
            return "yes" if value else "no"
        case list():
            return ", ".join(value)
        case _:
            return str(value)


def library_info(library: Library) -> dict[str, Any]:
    """bytes: of every blob, each once. missing, missing_bytes: those that this folder lacks."""
    manifest, refs = library.manifest, library.manifest.refs()
    missing = library.blobs.missing(refs)
    return {
        "name": library.name,
        "digest": library.digest,
        "version": LIBRARY_VERSION,
        "numerics": NUMERICS_VERSION,
        "family": library.spec.family,
        "variants": list(library.variants),
        "result_type": manifest.result_type,
        "trunk_kind": manifest.trunk.kind,
        "tokenizer": manifest.tokenizer is not None,
        "chat_template": manifest.chat_template is not None,
        "blobs": len(refs),
        "bytes": sum(ref.bytes for ref in refs),
        "missing": len(missing),
        "missing_bytes": sum(ref.bytes for ref in missing),
        "spec": library.spec.to_dict(),
        "report": manifest.report,
    }


def verify_command(
    folder: Folder,
    partial: Annotated[
        bool, typer.Option("--partial", help="blobs that are not there are no problem, only told")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Read every blob of a library and compare it with its digest."""
    library = Library.open(folder)
    with progress_bar("verifying") as progress:
        verdict = verify(library, progress, partial)
    if as_json:
        ok = not verdict.problems
        print_json({"ok": ok, "digest": library.digest, **dataclasses.asdict(verdict)})
        raise typer.Exit(0 if ok else 1)  # one document on stdout, not another with the error
    if not partial and verdict.problems and len(verdict.problems) == verdict.missing:
        raise IncompleteLibrary(
            f"{verdict.missing} of {verdict.blobs} blobs are not here; get them with `moemesh library fetch`"
            ", or give --partial if the folder need not have all"
        )
    verdict.raise_if_broken()
    more = f"; {len(verdict.strays)} files do not belong to it" if verdict.strays else ""
    if verdict.missing:
        here = verdict.blobs - verdict.missing
        part = f"{here} of {verdict.blobs} blobs, all of them sound"
        typer.echo(f"{library.name} is here in part: {part}{more}")
    else:
        typer.echo(f"{library.name} is sound: {verdict.blobs} blobs, {verdict.bytes:,} bytes{more}")
