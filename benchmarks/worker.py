"""A process of another environment that measures on request: one line in, one line out."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager


class Worker:
    """Sleeps while it is not asked, so that it can take turns with us on the same cores."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.greeting = self._line()

    def seconds(self, verb: str, amount: int) -> float:
        """How long the other side took. Raises RuntimeError when it has ended."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{verb} {amount}\n")
        self._process.stdin.flush()
        return float(self._line())

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args!r} ended with {self._process.wait()}; see above")
        return line.strip()


@contextmanager
def worker(python: str, script: str, *arguments: object) -> Iterator[Worker]:
    """Start `script` and end it by closing its input. It prints one line when it is ready.

    -P keeps this folder out of its search path: llama_cpp.py here is not the package of that name.
    Raises RuntimeError when it ends instead: an illegal instruction, a missing package.
    """
    command: Sequence[str] = [python, "-P", script, *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Worker(process)
        assert process.stdin is not None
        process.stdin.close()
