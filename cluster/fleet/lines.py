"""What a command on another machine says while it works, one JSON object a line on its stdout.

{"phase": text} · {"done": text}    as Progress
{"answer": value} · {"error": [class name, message]}    the last line
"""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from typing import Any, TextIO

from cluster.errors import MoemeshError, error_from_wire
from cluster.fleet.machine import Progress


class LineProgress:
    """The side that works."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stdout
        self._said = ""

    def phase(self, text: str) -> None:
        if text != self._said:
            self._said = text
            self._say({"phase": text})

    def done(self, text: str) -> None:
        self._say({"done": text})

    def answer(self, value: Any) -> None:
        self._say({"answer": value})

    def error(self, error: MoemeshError) -> None:
        self._say({"error": [type(error).__name__, str(error)]})

    def _say(self, line: dict[str, Any]) -> None:
        with suppress(OSError):  # whoever listened has gone; what goes on must come to its end all the same
            self._out.write(json.dumps(line) + "\n")
            self._out.flush()


class Listener:
    """The side that reads. answer: None until it has come."""

    def __init__(self, progress: Progress, who: str) -> None:
        """who: goes before what is said."""
        self.answer: Any = None
        self._progress, self._who = progress, who

    def hear(self, line: str) -> None:
        """Raises the error that the command ended with. What is none of ours is passed over: a login script
        may greet."""
        try:
            said = json.loads(line)
        except ValueError:
            return
        if not isinstance(said, dict):
            return
        if "error" in said:
            name, message = said["error"]
            found = error_from_wire(str(name), str(message))
            raise type(found)(f"{self._who}: {found}")
        if "answer" in said:
            self.answer = said["answer"]
        elif "done" in said:
            self._progress.done(f"{self._who}: {said['done']}")
        elif "phase" in said:
            self._progress.phase(f"{self._who}: {said['phase']}")
