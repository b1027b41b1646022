"""`python -m kernels.selfcheck` compares this machine's bits with the manifest and exits 1 where they differ;
with --write it stores them.
"""

from __future__ import annotations

import argparse
import sys

from kernels import jit, selfcheck, warm


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m kernels.selfcheck", description=__doc__)
    parser.add_argument("--write", action="store_true", help="store this machine's bits as the manifest")
    options = parser.parse_args()
    warm.compile_all(apart=True)
    if options.write:
        selfcheck.write()
    wrong = selfcheck.wrong_bits()
    names = ", ".join(wrong) or "none"
    sys.stdout.write(f"{len(selfcheck.stored())} cases ({jit.ISA}); with other bits: {names}\n")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
