"""Fill the compile cache of every instruction set that this CPU has beside its own; run as a script.

tests/numeric/test_isa.py runs each of them in a process that starts cold. `make test` has this beside the
tests before it, at the lowest priority, on the core that they leave free; without it they are compiled then.
"""

from __future__ import annotations

import os
import subprocess
import sys

from kernels import jit


def main() -> None:
    for isa in jit.supported_isas():
        if isa != jit.ISA:
            # What goes wrong goes wrong again in the test, and is shown there.
            subprocess.run(
                [sys.executable, "-m", "kernels.warm"],
                env=os.environ | {jit.ISA_VARIABLE: isa},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )


if __name__ == "__main__":
    main()
