"""The kernels under NEON, on a machine that has none: qemu runs an ARM Python, and its bits must be ours.

    PYTHONPATH=tests python tests/arm/emulated.py FOLDER

FOLDER keeps an arm64 Python (Debian packages, unpacked), numba, llvmlite and numpy for it (wheels of the
versions in use here), and the kernels that were compiled. Everything is compiled under emulation, which takes
minutes for each instruction set. Exits 1 where a digest differs; says why and exits 0 where it cannot run.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from support.debian import CannotRun, fetch, unpacked

ROOT = Path(__file__).resolve().parents[2]
CASES = ROOT / "tests" / "numeric" / "isa_cases.py"

INSTRUCTION_SETS = ("neon_i8mm", "neon_dotprod")
QEMU = ("qemu-aarch64-static", "qemu-aarch64")

SUITE, PYTHON = "bookworm", "3.11"
PACKAGES = (
    *(f"python{PYTHON}-minimal", f"libpython{PYTHON}-minimal", f"libpython{PYTHON}-stdlib"),
    *("libc6", "libgcc-s1", "libstdc++6", "libffi8", "libexpat1", "libssl3", "libbz2-1.0", "liblzma5"),
    *("libuuid1", "zlib1g"),
)
WHEELS = ("numpy", "numba", "llvmlite")
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64")


def main(folder: Path) -> int:
    try:
        qemu = find_qemu()
        folder.mkdir(parents=True, exist_ok=True)
        sysroot, site = unpacked(folder, PACKAGES, "arm64", SUITE), wheels_for_arm(folder)
    except CannotRun as reason:
        print(f"test-arm skipped: {reason}")
        return 0
    here = digests([sys.executable, str(CASES)], {})
    print(f"{here['isa']} here: {len(here['digests'])} digests", flush=True)
    command = [qemu, "-cpu", "max", "-L", str(sysroot), str(sysroot / f"usr/bin/python{PYTHON}"), str(CASES)]
    return max([compare(here["digests"], isa, command, folder, site) for isa in INSTRUCTION_SETS])


def compare(here: dict[str, str], isa: str, command: Sequence[str], folder: Path, site: Path) -> int:
    """1 if an instruction set under emulation gives other digests than this machine, else 0."""
    print(f"{isa}: compiling and running under {command[0]}", flush=True)
    begin = time.monotonic()
    more = {"MOEMESH_ISA": isa, "MOEMESH_CACHE_DIR": str(folder / "cache")}
    there = digests(command, more, site)
    if there["isa"] != isa:
        print(f"{isa}: the emulated CPU has only {there['isa']}")
        return 1
    wrong = sorted(name for name, digest in here.items() if there["digests"].get(name) != digest)
    verdict = f"other bits: {', '.join(wrong)}" if wrong else f"the same {len(here)} digests"
    print(f"{isa}: {verdict} ({time.monotonic() - begin:.0f} s)", flush=True)
    return 1 if wrong else 0


def digests(command: Sequence[str], more: dict[str, str], *paths: Path) -> dict[str, dict[str, str]]:
    """What tests/numeric/isa_cases.py prints when `command` runs it."""
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests", *paths)))
    environment = os.environ | {"PYTHONPATH": path} | more
    run = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, cwd=ROOT)
    found: dict[str, dict[str, str]] = json.loads(run.stdout)
    return found


def find_qemu() -> str:
    for name in QEMU:
        if found := shutil.which(name):
            return found
    raise CannotRun(f"{QEMU[0]} is not installed (Debian: apt-get install qemu-user-static)")


def wheels_for_arm(folder: Path) -> Path:
    """Import path of numpy, numba and llvmlite for arm64, in the versions that run here."""
    wanted = [f"{name}=={version(name)}" for name in WHEELS]
    site = folder / "-".join(["site", *(name.replace("==", "-") for name in wanted)])
    if site.is_dir():
        return site
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:", "--no-deps"]
    for name in PLATFORMS:
        command += ["--platform", name]
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        work = Path(scratch)
        fetch([*command, "--python-version", PYTHON, "--dest", str(work / "wheels"), *wanted], work, {})
        for wheel in sorted((work / "wheels").glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(work / "site")
        (work / "site").rename(site)
    return site


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]).resolve()))
