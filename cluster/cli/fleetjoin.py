"""`moemesh fleet join` and `leave`, and what `up --fleet` calls on the machines of a fleet."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.cli.output import Progress
from cluster.errors import MoemeshError

File = Annotated[Path, typer.Argument(help="Fleet file; docs/fleet.md.", exists=True, dir_okay=False)]
HostName = Annotated[
    str, typer.Option("--host", metavar="NAME", help="Which of its hosts this is; default: found by address.")
]
Lines = Annotated[bool, typer.Option("--lines", hidden=True)]


def register(fleet: typer.Typer) -> None:
    """Add the commands to the group of `moemesh fleet`."""
    fleet.command("join")(join)
    fleet.command("leave")(leave)
    fleet.command("serve")(serve)
    for name, command in (("probe", probe), ("secrets", tell_secrets)):
        fleet.command(name, hidden=True)(command)


def join(
    file: File,
    host: HostName = "",
    block: Annotated[
        bool, typer.Option("--block", help="Stay, and leave when a signal comes: for systemd and pods.")
    ] = False,
    autoscaling: Annotated[
        str,
        typer.Option(
            "--autoscaling-config", metavar="FILE", help="On the head, from `ray up`: as `ray start` has it."
        ),
    ] = "",
    secrets: Annotated[
        Path | None,
        typer.Option(help="Folder with token and cluster.key, from `fleet render`; default: what is there."),
    ] = None,
    given: Annotated[bool, typer.Option("--given-secrets", hidden=True)] = False,
    lines: Lines = False,
) -> None:
    """Make this machine part of its fleet: start Ray as the fleet file says."""
    from cluster.fleet import handover
    from cluster.fleet import join as joining
    from cluster.fleet.signals import Signals

    with saying(lines) as (progress, answer), Signals() as signals:
        fleet, own, folder = joining.fleet_at(file, host)
        if given:
            handover.take_secrets(folder, sys.stdin.read())
        elif secrets is not None:
            handover.copy_secrets(folder, secrets)
        machine = joining.join(fleet, own, folder, progress, signals, autoscaling)
        answer({"host": own.name, "ray": machine.record.ray})
        if block:
            joining.stay(machine, folder, signals)


def leave(file: File, host: HostName = "", lines: Lines = False) -> None:
    """End everything of the fleet on this machine; `moemesh drain` its node first."""
    from cluster.fleet import join as joining

    with saying(lines) as (progress, answer):
        fleet, own, folder = joining.fleet_at(file, host)
        progress.phase("stopping")
        answer({"host": own.name, "stopped": joining.leave(fleet, own, folder)})


def probe(file: File, host: HostName = "", lines: Lines = False) -> None:
    """What `up --fleet` must know of this machine."""
    from cluster.fleet import join as joining

    with saying(lines) as (_, answer):
        answer(joining.probe(*joining.fleet_at(file, host)))


def serve(file: File, host: HostName = "", lines: Lines = False) -> None:
    """On the head: wait for the other machines, start the roles that do not run yet, until it serves."""
    from cluster.fleet import join as joining
    from cluster.fleet.serve import serve as start_roles
    from cluster.fleet.signals import Signals

    with saying(lines) as (progress, answer), Signals() as signals:
        fleet, own, folder = joining.fleet_at(file, host)
        record = start_roles(fleet, own, folder, progress, signals)
        found = {"grpc": record.grpc, "http": record.http_url, "gateways": record.gateways()}
        about = {"model": record.model, "variant": record.variant}
        answer(found | about | {"hosts": [each.name for each in fleet.hosts]})


def tell_secrets(file: File, host: HostName = "", lines: Lines = False) -> None:
    """What a machine that joins later needs."""
    from cluster.fleet import join as joining

    with saying(lines) as (_, answer):
        _, _, folder = joining.fleet_at(file, host)
        answer({"token": folder.token.read_text(), "key": folder.cluster_key().hex()})


@contextmanager
def saying(lines: bool) -> Iterator[tuple[Any, Callable[[dict[str, Any]], None]]]:
    """Progress and what takes the answer: for another machine as lines, for people as text."""
    if lines:
        from cluster.fleet.lines import LineProgress

        told = LineProgress()
        try:
            yield told, told.answer
        except MoemeshError as error:
            told.error(error)
            raise typer.Exit(1) from None
        return
    with Progress() as progress:
        yield progress, lambda value: typer.echo(", ".join(f"{name} {v}" for name, v in value.items()))
