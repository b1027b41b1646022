"""Every kernel in one import, and their compilation before anything serves.

`python -m kernels.warm` fills the compile cache and prints one line a kernel.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from kernels import attention, experts, fused, gate, jit, matmul, norm, permute, quantise, rope, sampling

MODULES = (attention, experts, fused, gate, matmul, norm, permute, quantise, rope, sampling)


def compile_all(progress: Callable[[int, int, str], None] | None = None) -> int:
    """Compile or load every kernel of MODULES, then close the dispatchers (kernels.jit.compile_all).

    progress(done, total, name) is called before each. Returns how many the cache did not hold.
    """
    return jit.compile_all(progress)


def main() -> None:
    """Compile with progress lines on stdout."""
    start = time.monotonic()

    def line(done: int, total: int, name: str) -> None:
        sys.stdout.write(f"[{done + 1}/{total}] {name}\n")
        sys.stdout.flush()

    missed = compile_all(line)
    total = len(jit.entry_points())
    seconds = time.monotonic() - start
    sys.stdout.write(f"{total} kernels ({jit.ISA}), {missed} variants compiled, {seconds:.1f} s\n")


if __name__ == "__main__":
    main()
