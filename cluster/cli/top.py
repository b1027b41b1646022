"""`moemesh top`: where the work is, live in the terminal."""

from __future__ import annotations

import os
import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from rich.live import Live

from cluster.balance.load import LoadStats
from cluster.cli.output import print_json, table_console
from cluster.cli.topview import Sample, Screen, view

if TYPE_CHECKING:
    from cluster.fleet.ask import Controller

ARROWS = {"\x1b[A": -1, "\x1b[B": 1, "k": -1, "j": 1}
"""Key: by how much it changes the layer."""

QUIT = ("q", "\x03", "\x1b")


def register(app: typer.Typer) -> None:
    app.command(help="Watch the load of experts and nodes in the terminal.")(top)


def top(
    interval: Annotated[float, typer.Option(help="Seconds between two looks.", min=0.1)] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Print one picture and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one sample as JSON and end.")] = False,
) -> None:
    from cluster.fleet.ask import Controller
    from cluster.fleet.folder import Folder

    folder = Folder()
    record = folder.require()
    with Controller(record.controller, folder) as controller:
        if as_json:
            print_json(_as_json(controller))
        elif once or not (sys.stdin.isatty() and sys.stdout.isatty()):
            before = _sample(controller)
            time.sleep(interval)
            console = table_console()
            screen = Screen(console.width, sys.maxsize)
            console.print(view(record.model, _sample(controller), before, screen))
        else:
            _watch(record.model, controller, interval)


def _watch(name: str, controller: Controller, interval: float) -> None:
    console, layer, before = table_console(), 0, None
    with _keys() as read, Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            now = _sample(controller)
            layers = len(now.status["table"]["replicas"]) if now.status["table"] else 1
            until = time.monotonic() + interval
            while (left := until - time.monotonic()) > 0:
                screen = Screen(console.width, console.height, layer)
                live.update(view(name, now, before, screen), refresh=True)
                key = read(left)
                if key in QUIT:
                    return
                layer = min(max(layer + ARROWS.get(key, 0), 0), layers - 1)
            before = now


def _sample(controller: Controller) -> Sample:
    return Sample(controller.status(detail=True), time.monotonic())


@contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """Yields read(seconds): the key that was pressed, or "". Afterwards the terminal is as before."""
    stdin = sys.stdin.fileno()
    saved = termios.tcgetattr(stdin)

    def read(seconds: float) -> str:
        ready, _, _ = select.select([stdin], [], [], max(seconds, 0.0))
        return os.read(stdin, 8).decode(errors="replace") if ready else ""

    try:
        tty.setcbreak(stdin)
        yield read
    finally:
        termios.tcsetattr(stdin, termios.TCSADRAIN, saved)


def _as_json(controller: Controller) -> dict[str, object]:
    """The status with the load as numbers: mean rows a step of every expert, layer by layer."""
    status = controller.status(detail=True)
    load = status["load"]
    stats = None if load is None else LoadStats.from_wire(load)
    return status | {"load": None if stats is None else stats.load.tolist()}
