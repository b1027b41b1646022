"""`moemesh fleet`: what is done with a fleet file besides `up --fleet`."""

from __future__ import annotations

import typer

from cluster.cli import fleetjoin

fleet = typer.Typer(help="Join a fleet, or leave it.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    app.add_typer(fleet, name="fleet")


@fleet.callback()
def _group() -> None:
    """Join a fleet, or leave it."""


fleetjoin.register(fleet)
