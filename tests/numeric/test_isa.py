"""Every kernel writes the same bytes on every instruction set, each in a process of its own."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from numeric import isa_cases

from kernels import jit

ROOT = Path(__file__).parents[2]

VARIANTS = {isa: {jit.ISA_VARIABLE: isa} for isa in jit.supported_isas() if isa != jit.ISA}
if platform.machine() == "x86_64":
    avx2 = "+sse2,+avx,+avx2,+fma,+f16c,+bmi,+bmi2"
    VARIANTS["avx2"] = {"NUMBA_CPU_NAME": "x86-64-v3", "NUMBA_CPU_FEATURES": avx2}
    # Nothing past SSE2, no fused multiply-add: LLVM has to emulate it.
    VARIANTS["sse2"] = {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": "+sse2"}


@pytest.fixture(scope="module")
def here() -> dict[str, str]:
    return isa_cases.digests()


def test_every_kernel_has_a_case(here):
    assert sorted(here) == sorted(jit.entry_points())


def test_a_case_is_the_same_twice(here):
    assert isa_cases.digests() == here


@pytest.mark.slow
@pytest.mark.timeout(600)  # a cold process compiles every kernel
@pytest.mark.parametrize("variant", VARIANTS)
def test_same_bytes(here, variant):
    path = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    environment = {**os.environ, "PYTHONPATH": path, **VARIANTS[variant]}
    script = ROOT / "tests" / "numeric" / "isa_cases.py"
    run = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, cwd=ROOT
    )
    assert run.returncode == 0, run.stderr
    there = json.loads(run.stdout)
    assert there["isa"] == VARIANTS[variant].get(jit.ISA_VARIABLE, "portable")
    assert {n for n in here if here[n] != there["digests"][n]} == set()
