"""`moemesh fleet`: what is done with a fleet file besides `up --fleet`."""

from __future__ import annotations

import typer

from cluster.cli import fleetrender

fleet = typer.Typer(help="Make what starts a fleet from its fleet file.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    app.add_typer(fleet, name="fleet")


@fleet.callback()
def _group() -> None:
    """Make what starts a fleet from its fleet file."""


fleetrender.register(fleet)
