"""`moemesh fleet survey`: what `doctor --fleet` runs on every host. It takes orders on stdin."""

from __future__ import annotations

import typer


def register(fleet: typer.Typer) -> None:
    fleet.command("survey", hidden=True)(survey)


def survey() -> None:
    """Measure links to other hosts, as told."""
    from cluster.fleet.folder import Folder
    from cluster.fleet.lines import LineProgress
    from cluster.fleet.links.agent import Agent, attend

    with Agent(Folder()) as agent:
        attend(agent, LineProgress())
