"""Kernels compiled before any role starts, in a process of their own: each role would compile the same."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

from cluster.errors import StartFailed
from cluster.fleet import processes
from cluster.fleet.processes import Mark
from cluster.fleet.raynode import last_line

_LINE = re.compile(r"\[(\d+)/(\d+)\]")


class KernelWarmup:
    """`python -m kernels.warm` as a child. done, total: kernels, 0 of 0 before the first is known.

    summary: its last line.
    """

    def __init__(self, environment: Mapping[str, str], log: Path) -> None:
        self.done = self.total = 0
        self.summary = ""
        self._log = log
        with open(log, "wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "kernels.warm"],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
                text=True,
            )
        self._reader = threading.Thread(target=self._read, name="kernels", daemon=True)
        self._reader.start()

    @property
    def mark(self) -> Mark | None:
        return processes.mark(self._process.pid)

    def finished(self) -> bool:
        """Raises StartFailed if it failed."""
        code = self._process.poll()
        if code is None:
            return False
        self._reader.join()
        if code:
            raise StartFailed(f"the kernels cannot be used: {last_line(self._log)}; see {self._log}")
        return True

    def end(self) -> None:
        """End the process, if it is there still, and what it holds of ours; idempotent."""
        self._process.kill()
        self._process.wait()
        self._reader.join()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self.summary = line.strip()
                if found := _LINE.match(line):
                    self.done, self.total = int(found[1]), int(found[2])
