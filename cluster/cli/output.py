"""What every verb prints, and where: results on stdout, progress and errors on stderr."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.status import Status

SILENCE_S = 1.0
"""Longest time without a sign of life where no terminal shows a spinner; the promise is two seconds."""

BEAT_S = 0.25
FASTEST_S = 0.5
"""Shortest time between two lines there, so that a log of `up` stays readable."""


MIN_WIDTH = 110
"""Columns of a table: a narrow terminal folds lines, a file or pipe has no width at all."""


def table_console() -> Console:
    """Stdout for tables."""
    console = Console(highlight=False)
    console.width = max(console.width, MIN_WIDTH)
    return console


def folding_console() -> Console:
    """Stdout for tables whose last column folds: as wide as the terminal."""
    console = Console(highlight=False)
    return console if console.is_terminal else table_console()


def addresses_of(gateways: Sequence[Mapping[str, str]]) -> str:
    """Lines for people. gateways: as `Record.gateways`."""
    grpc = ", ".join(each["grpc"] for each in gateways)
    http = ", ".join(f"{each['http']}/v1" for each in gateways if each["http"])
    return f"gRPC: {grpc}\n" + (f"OpenAI: {http}, metrics at /metrics\n" if http else "")


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def print_error(code: str, message: str, as_json: bool) -> None:
    """One line on stderr; with --json an object on stdout instead."""
    if as_json:
        print_json({"error": {"code": code, "message": message}})
    else:
        sys.stderr.write(f"error: {' '.join(message.split())}\n")


class ProgressConsole(Console):
    """Stderr whose reader may have gone: what is said then is lost, and what is being done goes on."""

    def on_broken_pipe(self) -> None:
        self.quiet = True


class Progress:
    """What goes on, on stderr: a spinner on a terminal that can, else a line at least every two seconds.

    Use as a context manager. `phase` replaces, `done` stays; both may be called as often as one likes, and
    never fail: a start that nobody listens to any more must still be ended in order.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or ProgressConsole(stderr=True, highlight=False)
        self._status: Status | None = None
        self._text = ""
        self._began = self._printed = time.monotonic()
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="progress", daemon=True)

    def __enter__(self) -> Progress:
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._status = self._console.status("")
            self._status.start()
        self._heart.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._heart.join()
        if self._status is not None:
            with suppress(OSError):
                self._status.stop()

    def phase(self, text: str) -> None:
        """What goes on now; replaces what was said before."""
        with self._lock:
            if text == self._text:
                return
            self._text = text
            if self._status is not None:
                self._show()
            elif time.monotonic() - self._printed > FASTEST_S:
                self._line(text)

    def done(self, text: str) -> None:
        """Something that is over; stays on the screen."""
        with self._lock:
            self._line(text, mark="[green]✓[/green] " if self._status is not None else "")

    def _beat(self) -> None:
        while not self._over.wait(BEAT_S):
            with self._lock:
                if self._status is not None:
                    self._show()
                elif self._text and time.monotonic() - self._printed > SILENCE_S:
                    self._line(f"{self._text} ({time.monotonic() - self._began:.0f} s)")

    def _show(self) -> None:
        assert self._status is not None
        with suppress(OSError):  # the terminal has gone
            self._status.update(f"{self._text} [dim]{time.monotonic() - self._began:.0f} s[/dim]")

    def _line(self, text: str, mark: str = "") -> None:
        self._printed = time.monotonic()
        with suppress(OSError):
            self._console.print(f"{mark}{text}", markup=bool(mark), soft_wrap=True)
