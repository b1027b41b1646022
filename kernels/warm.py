"""Every kernel in one import, and their compilation before anything serves.

`python -m kernels.warm` fills the compile cache, prints one line a kernel, and fails if what they compute is
not what the bits manifest says (kernels/selfcheck).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from kernels import (
    attention,
    choice,
    experts,
    express,
    flow,
    fused,
    gate,
    jit,
    matmul,
    norm,
    permute,
    placement,
    quantise,
    rope,
    sampling,
)

MODULES = (
    attention,
    choice,
    experts,
    express,
    flow,
    fused,
    gate,
    matmul,
    norm,
    permute,
    placement,
    quantise,
    rope,
    sampling,
)


def compile_all(progress: Callable[[int, int, str], None] | None = None) -> jit.Warmth:
    """Compile or load every kernel of MODULES, then close the dispatchers (kernels.jit.compile_all).

    progress(done, total, name) is called before each.
    """
    return jit.compile_all(progress)


def main() -> None:
    """Compile with progress lines on stdout; the reason of a failure is the last line on stderr."""
    from kernels import selfcheck  # not above: what serves needs no cases

    start = time.monotonic()

    def line(done: int, total: int, name: str) -> None:
        sys.stdout.write(f"[{done + 1}/{total}] {name}\n")
        sys.stdout.flush()

    warmth = compile_all(line)
    total = len(jit.entry_points())
    seconds = time.monotonic() - start
    variants = f"{warmth.compiled} variants compiled, {warmth.loaded} loaded"
    sys.stdout.write(f"{total} kernels ({jit.ISA}), {variants}, {seconds:.1f} s\n")
    if wrong := selfcheck.wrong_bits():
        sys.exit(f"{', '.join(wrong)} give other bits than every other machine; see `moemesh doctor`")


if __name__ == "__main__":
    main()
