"""`moemesh fleet upgrade`, and what it calls on the hosts."""

from __future__ import annotations

import json
import time
from typing import Annotated

import typer

from cluster.cli.fleetjoin import File, HostName, Lines, saying
from cluster.cli.output import Progress, print_json

Meant = Annotated[int, typer.Option("--generation", hidden=True)]


def register(fleet: typer.Typer) -> None:
    """Add the commands to the group of `moemesh fleet`."""
    fleet.command("upgrade")(upgrade)
    for command in (prepare, renew, versions, generations, turn):
        fleet.command(command.__name__, hidden=True)(command)


def upgrade(
    file: File,
    install: Annotated[
        str,
        typer.Option(
            "--install", metavar="COMMAND", help="Run on each host first; default: it is installed."
        ),
    ] = "",
    hosts: Annotated[
        list[str] | None, typer.Option("--host", metavar="NAME", help="Only this one; repeatable.")
    ] = None,
    model: Annotated[
        bool, typer.Option("--model", help="Change over to the file's `model` and `variant` instead.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Have the fleet run the installed version, or another model, host by host, while it serves."""
    from cluster.fleet.changeover import change
    from cluster.fleet.file import load
    from cluster.fleet.signals import Signals
    from cluster.fleet.upgrade import upgrade as upgrade_hosts

    if model and (install or hosts):
        raise typer.BadParameter("goes without --install and --host", param_hint="--model")
    fleet, text, begin = load(file), file.read_text(), time.monotonic()
    with Progress() as progress, Signals() as signals:
        if model:
            found = change(fleet, text, progress, signals)
        else:
            found = upgrade_hosts(fleet, text, progress, signals, install, hosts or ())
    seconds = time.monotonic() - begin
    if as_json:
        print_json(found | {"fleet": fleet.name, "seconds": round(seconds, 2)})
    elif model:
        typer.echo(f"{fleet.name} serves {found['model']} ({found['variant']}) after {seconds:.1f} s")
    else:
        typer.echo(
            f"{fleet.name} runs {found['version']}: {len(found['renewed'])} processes were started anew "
            f"within {seconds:.1f} s"
        )


def prepare(file: File, host: HostName = "", meant: Meant = 0, lines: Lines = False) -> None:
    """Whether the version that is installed may take over on this machine."""
    from cluster.fleet import join as joining
    from cluster.fleet.prepare import prepare as prepare_host
    from cluster.fleet.signals import Signals

    with saying(lines) as (progress, answer), Signals() as signals:
        answer(prepare_host(*joining.fleet_at(file, host, meant), progress, signals))


def renew(file: File, host: HostName = "", meant: Meant = 0, lines: Lines = False) -> None:
    """Start the roles of this machine anew that run another version."""
    from cluster.fleet import join as joining
    from cluster.fleet.renew import renew as renew_host
    from cluster.fleet.signals import Signals

    with saying(lines) as (progress, answer), Signals() as signals:
        answer(renew_host(*joining.fleet_at(file, host, meant), progress, signals))


def versions(file: File, host: HostName = "", meant: Meant = 0, lines: Lines = False) -> None:
    """Which versions run on each host."""
    from cluster.fleet import join as joining
    from cluster.fleet.prepare import running

    with saying(lines) as (_, answer):
        answer(running(*joining.fleet_at(file, host, meant)))


def generations(file: File, host: HostName = "", lines: Lines = False) -> None:
    """On the head: what the fleet serves, and what its file names."""
    from cluster.fleet import join as joining
    from cluster.fleet.generations import told

    with saying(lines) as (_, answer):
        answer(told(*joining.fleet_at(file, host)))


def turn(
    file: File,
    step: Annotated[str, typer.Option("--step")],
    between: Annotated[str, typer.Option("--between")],
    host: HostName = "",
    lines: Lines = False,
) -> None:
    """This machine's part of a change of the model."""
    from cluster.fleet import join as joining
    from cluster.fleet.generations import Turn
    from cluster.fleet.signals import Signals
    from cluster.fleet.turn import STEPS, Step

    with saying(lines) as (progress, answer), Signals() as signals:
        fleet, own, folder = joining.fleet_at(file, host)
        wanted = Turn.from_wire(json.loads(between))
        answer(STEPS[step](Step(fleet, own.name, folder, wanted, progress, signals)))
