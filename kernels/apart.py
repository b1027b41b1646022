"""Kernels compiled in several processes at once, since one compiles under a lock of its own.

`python -m kernels.apart` is a worker: it reads names of kernels, one a line, compiles each into the cache
that it shares with its parent, and answers with the name.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress

from kernels import jit


def compile_apart(names: Sequence[str], processes: int, done: Callable[[str], None]) -> None:
    """Compile the kernels `names` into the cache by `processes` workers. done(name) is called after each, by
    one thread at a time.

    Returns also if a worker failed, or cannot be started (in an emulator of another CPU): what is missing
    then is compiled by whoever needs it, and fails there with its reason.
    """
    waiting, turn = deque(names), threading.Lock()

    def drive() -> None:
        with suppress(OSError), _worker() as worker:
            assert worker.stdin
            while (name := _next(waiting)) and _ask(worker, name):
                with turn:
                    done(name)
            worker.stdin.close()

    threads = [threading.Thread(target=drive, name="compile") for _ in range(min(processes, len(names)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _worker() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "kernels.apart"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def _next(waiting: deque[str]) -> str | None:
    try:
        return waiting.popleft()
    except IndexError:
        return None


def _ask(worker: subprocess.Popen[str], name: str) -> bool:
    """Whether the worker has compiled `name`."""
    assert worker.stdin
    assert worker.stdout
    try:
        worker.stdin.write(f"{name}\n")
        worker.stdin.flush()
    except BrokenPipeError:
        return False
    return worker.stdout.readline().strip() == name


def main() -> None:
    from kernels import warm  # not above: imports every kernel, which the parent has done

    assert warm.MODULES
    for line in sys.stdin:
        jit.compile_one(line.strip())
        sys.stdout.write(line)
        sys.stdout.flush()


if __name__ == "__main__":
    main()
