"""`--fleet FILE` of up, down and status: the same for a fleet."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from cluster.cli.output import Progress, addresses_of, print_json
from cluster.errors import MoemeshError

Fleet = Annotated[
    Path | None,
    typer.Option("--fleet", metavar="FILE", help="Of the machines of this fleet file.", exists=True),
]


def up(file: Path, as_json: bool) -> None:
    from cluster.fleet.file import load
    from cluster.fleet.muster import bring_up
    from cluster.fleet.signals import Signals

    fleet = load(file)
    begin = time.monotonic()
    with Progress() as progress, Signals() as signals:
        found = bring_up(fleet, file.read_text(), progress, signals)
    seconds = time.monotonic() - begin
    if as_json:
        print_json(found | {"fleet": fleet.name, "seconds": round(seconds, 2)})
        return
    addresses = ",".join(one["grpc"] for one in found["gateways"])
    typer.echo(
        f"\n{found['model']} ({found['variant']}) is up on {len(fleet.hosts)} hosts of {fleet.name} "
        f"after {seconds:.1f} s\n{addresses_of(found['gateways'])}\nTry next:\n"
        f'  moemesh generate "To be, or not to be" --address {addresses}\n'
        f"  moemesh status --fleet {file}\n  moemesh down --fleet {file}"
    )


def down(file: Path, as_json: bool) -> None:
    from cluster.fleet.file import load
    from cluster.fleet.muster import take_down
    from cluster.fleet.signals import Signals

    fleet = load(file)
    begin = time.monotonic()
    with Progress() as progress, Signals() as signals:
        stopped = take_down(fleet, file.read_text(), progress, signals)
    seconds = time.monotonic() - begin
    if as_json:
        print_json({"stopped": True, "hosts": stopped, "seconds": round(seconds, 2)})
    else:
        typer.echo(f"stopped {stopped} hosts after {seconds:.1f} s; every process and port is free")


def status(file: Path, as_json: bool) -> None:
    """What `moemesh status` says on the fleet's head."""
    from cluster.fleet.file import load
    from cluster.fleet.shell import Shell, moemesh

    head = load(file).head
    words = ("status", "--json") if as_json else ("status",)
    said: list[str] = []
    try:
        Shell(head).run(moemesh(head, *words), said.append)
    except MoemeshError:
        if not as_json or not said:
            raise
        typer.echo("".join(said), nl=False)  # the error as an object
        raise typer.Exit(1) from None
    typer.echo("".join(said), nl=False)
