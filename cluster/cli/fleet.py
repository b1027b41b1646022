"""`moemesh fleet`: what is done with a fleet file besides `up --fleet`."""

from __future__ import annotations

import typer

from cluster.cli import fleetjoin, fleetrender, fleetsurvey, fleetupgrade

fleet = typer.Typer(
    help="Join a fleet, leave it, upgrade it, make files that start one.", no_args_is_help=True
)


def register(app: typer.Typer) -> None:
    app.add_typer(fleet, name="fleet")


@fleet.callback()
def _group() -> None:
    """Join a fleet, leave it, upgrade it, make files that start one."""


fleetjoin.register(fleet)
fleetrender.register(fleet)
fleetsurvey.register(fleet)
fleetupgrade.register(fleet)
