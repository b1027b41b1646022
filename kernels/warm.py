"""Every kernel in one import, and their compilation before anything serves.

`python -m kernels.warm` fills the compile cache, prints one line a kernel, and fails if what they compute is
not what the bits manifest says (kernels/selfcheck).
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from importlib import import_module

from kernels import jit
from kernels.apart import compile_apart

MODULES = tuple(
    import_module(f"kernels.{name}")
    for name in (
        "alternatives",
        "attention",
        "choice",
        "experts",
        "express",
        "flow",
        "fused",
        "gate",
        "matmul",
        "norm",
        "permute",
        "placement",
        "placement_search",
        "quantise",
        "replicas",
        "rope",
        "sampling",
    )
)
"""All that have kernels."""


def compile_all(progress: Callable[[int, int, str], None] | None = None, apart: bool = False) -> jit.Warmth:
    """Compile or load every kernel of MODULES, then close the dispatchers (kernels.jit.compile_all).

    apart: what the cache lacks is compiled by a process for each core that this one may use.
    progress(done, total, name) is called before each kernel, with `apart` after each.
    """
    missing = jit.uncached() if apart else {}
    if len(missing) <= 1:
        return jit.compile_all(progress)
    total = len(jit.entry_points())
    done = total - len(missing)

    def count(name: str) -> None:
        nonlocal done
        done += 1
        if progress:
            progress(done, total, name)

    if progress:
        progress(done, total, next(iter(missing)))
    compile_apart(list(missing), _cores(), count)
    warmth = jit.compile_all()
    elsewhere = sum(missing.values()) - warmth.compiled
    return jit.Warmth(warmth.loaded - elsewhere, warmth.compiled + elsewhere)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def main() -> None:
    """Compile with progress lines on stdout; the reason of a failure is the last line on stderr."""
    from kernels import selfcheck  # not above: what serves needs no cases

    start = time.monotonic()

    def line(done: int, total: int, name: str) -> None:
        sys.stdout.write(f"[{done}/{total}] {name}\n")
        sys.stdout.flush()

    warmth = compile_all(line, apart=True)
    total = len(jit.entry_points())
    seconds = time.monotonic() - start
    variants = f"{warmth.compiled} variants compiled, {warmth.loaded} loaded"
    sys.stdout.write(f"{total} kernels ({jit.ISA}), {variants}, {seconds:.1f} s\n")
    if wrong := selfcheck.wrong_bits():
        sys.exit(f"{', '.join(wrong)} give other bits than every other machine; see `moemesh doctor`")


if __name__ == "__main__":
    main()
