"""Orders to one machine and its answers, as long as a command of ours runs there."""

from __future__ import annotations

import json
from contextlib import ExitStack
from typing import Any

from cluster.errors import HostFailed
from cluster.fleet.lines import Listener
from cluster.fleet.machine import Progress
from cluster.fleet.shell import Shell


class Conversation:
    """A command that reads orders, a line of JSON each, and answers as cluster/fleet/lines.py says.

    Lifecycle: it runs from the beginning; close() ends its stdin, whereupon it ends. One thread at a time.
    """

    def __init__(self, shell: Shell, command: str, progress: Progress) -> None:
        self.host = shell.host
        self._stack = ExitStack()
        self._process = self._stack.enter_context(shell.running(command))
        self._progress = progress

    def ask(self, order: dict[str, Any]) -> Any:
        """Raises HostFailed if it has ended, and the error that it answers."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        listener = Listener(self._progress, f"host {self.host.name}")
        try:
            self._process.stdin.write(json.dumps(order) + "\n")
            self._process.stdin.flush()
            while listener.answer is None and (line := self._process.stdout.readline()):
                listener.hear(line)
        except (OSError, ValueError):  # its pipes are closed, by itself or by us
            pass
        if listener.answer is None:
            self.close()
            raise HostFailed(f"host {self.host.name} has ended the conversation; try `moemesh doctor` there")
        return listener.answer

    def close(self) -> None:
        """Raises HostFailed if the command failed; twice does nothing."""
        self._stack.close()
