"""`moemesh chaos`: random faults on a cluster of its own, under load, and whether it kept its promises."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, TextIO

import typer

from cluster.cli.options import AsJson
from cluster.cli.output import Progress

FAULTS = 20
"""If neither a number nor a time is given."""


def register(app: typer.Typer) -> None:
    app.command("chaos")(chaos)


def chaos(
    faults: Annotated[int, typer.Option(help=f"How many; {FAULTS} unless --minutes is given.", min=0)] = 0,
    minutes: Annotated[float, typer.Option(help="Instead: for how long.", min=0.0)] = 0.0,
    seed: Annotated[int, typer.Option(help="Same seed, same faults and requests.", min=0)] = 0,
    streams: Annotated[int, typer.Option(help="Clients at once.", min=1)] = 6,
    soak: Annotated[
        bool,
        typer.Option(
            "--soak", help="Spare the first of each role: its memory, files and threads must stay flat."
        ),
    ] = False,
    history: Annotated[Path | None, typer.Option(help="Write every request and fault to this file.")] = None,
    logs: Annotated[Path | None, typer.Option(help="Folder for the logs of the cluster's processes.")] = None,
    as_json: AsJson = False,
) -> None:
    """Kill, freeze, cut off and slow down parts of a cluster that is started for it, while clients ask, leave
    and come back. Afterwards its history is checked: every token, its bits, every end, everything returned.

    Exits with 1 if something promised was not kept. docs/chaos.md says what is promised.
    """
    from cluster.cli.chaos_report import Outcome, show
    from cluster.cli.chaos_run import carry_out
    from cluster.experiments.chaos.history import History
    from cluster.experiments.chaos.run import Plan
    from cluster.experiments.chaos.schedule import Shape

    if faults and minutes:
        raise typer.BadParameter("cannot be used with --minutes", param_hint="--faults")
    # Whoever ends us with SIGTERM leaves nothing behind either: a frozen child could not end by itself.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    plan = Plan(seed, 0 if minutes else faults or FAULTS, minutes, streams, Shape(spared=soak))
    with ExitStack() as stack:
        file = None if history is None else stack.enter_context(_writing(history))
        progress = stack.enter_context(Progress())
        kept = History(file)
        answers, samples = carry_out(plan, kept, logs, progress.phase)
    outcome = Outcome.of(plan, kept.events, answers, samples if soak else ())
    show(outcome, as_json)
    if outcome.violations or not outcome.flat:
        raise typer.Exit(1)


def _writing(history: Path) -> TextIO:
    try:
        return history.open("w")
    except OSError as error:
        raise typer.BadParameter(f"cannot be written ({error.strerror})", param_hint="--history") from None
