"""`moemesh fleet upgrade`, and what it calls on the hosts."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from cluster.cli.fleetjoin import File, HostName, Lines, saying
from cluster.cli.output import Progress, print_json


def register(fleet: typer.Typer) -> None:
    """Add the commands to the group of `moemesh fleet`."""
    fleet.command("upgrade")(upgrade)
    for name, command in (("prepare", prepare), ("renew", renew), ("versions", versions)):
        fleet.command(name, hidden=True)(command)


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
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Have the fleet run the installed version, one host after the other, while it serves."""
    from cluster.fleet.file import load
    from cluster.fleet.signals import Signals
    from cluster.fleet.upgrade import upgrade as upgrade_hosts

    fleet = load(file)
    begin = time.monotonic()
    with Progress() as progress, Signals() as signals:
        found = upgrade_hosts(fleet, file.read_text(), progress, signals, install, hosts or ())
    seconds = time.monotonic() - begin
    if as_json:
        print_json(found | {"fleet": fleet.name, "seconds": round(seconds, 2)})
    else:
        typer.echo(
            f"{fleet.name} runs {found['version']}: {len(found['renewed'])} processes were started anew "
            f"within {seconds:.1f} s"
        )


def prepare(file: File, host: HostName = "", lines: Lines = False) -> None:
    """Whether the version that is installed may take over on this machine."""
    from cluster.fleet import join as joining
    from cluster.fleet.prepare import prepare as prepare_host
    from cluster.fleet.signals import Signals

    with saying(lines) as (progress, answer), Signals() as signals:
        answer(prepare_host(*joining.fleet_at(file, host), progress, signals))


def renew(file: File, host: HostName = "", lines: Lines = False) -> None:
    """Start the roles of this machine anew that run another version."""
    from cluster.fleet import join as joining
    from cluster.fleet.renew import renew as renew_host
    from cluster.fleet.signals import Signals

    with saying(lines) as (progress, answer), Signals() as signals:
        answer(renew_host(*joining.fleet_at(file, host), progress, signals))


def versions(file: File, host: HostName = "", lines: Lines = False) -> None:
    """Which versions run on each host."""
    from cluster.fleet import join as joining
    from cluster.fleet.prepare import running

    with saying(lines) as (_, answer):
        answer(running(*joining.fleet_at(file, host)))
