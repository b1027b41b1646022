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

from kernels import jit, selfcheck

ROOT = Path(__file__).parents[2]
X86 = pytest.mark.skipif(platform.machine() != "x86_64", reason="names x86 features")
OTHERS = [isa for isa in jit.supported_isas() if isa != jit.ISA]

AVX2 = {"NUMBA_CPU_NAME": "x86-64-v3", "NUMBA_CPU_FEATURES": "+avx2,+fma"}
SSE2 = {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": "+sse2"}


def python(*arguments: str, **variables: str) -> str:
    """Stdout of a Python process with nothing of these variables but what is given."""
    ours = (jit.ISA_VARIABLE, *AVX2)
    inherited = {name: value for name, value in os.environ.items() if name not in ours}
    path = os.pathsep.join((str(ROOT), str(ROOT / "tests")))
    run = subprocess.run(
        [sys.executable, *arguments],
        env=inherited | {"PYTHONPATH": path} | variables,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.fixture(scope="module")
def here() -> dict[str, str]:
    return isa_cases.digests()


def test_every_kernel_has_a_case():
    assert sorted({name.split(".")[0] for name in selfcheck.CASES}) == sorted(jit.entry_points())


def test_a_case_is_the_same_twice(here):
    assert selfcheck.digests() == {name: here[name] for name in selfcheck.CASES}


@pytest.mark.slow
@pytest.mark.timeout(600)  # a cold process compiles every kernel
@pytest.mark.parametrize("isa", OTHERS)
def test_same_bytes(here, isa):
    there = json.loads(python("tests/numeric/isa_cases.py", **{jit.ISA_VARIABLE: isa}))
    assert there["isa"] == isa
    assert {name for name in here if here[name] != there["digests"][name]} == set()


def test_every_set_is_a_file():
    for isa in jit.ISAS:
        assert (ROOT / "kernels" / "simd" / f"{isa}.py").is_file()


@X86
@pytest.mark.parametrize(
    ("variables", "chosen"),
    [
        (AVX2, "avx2"),
        (SSE2, "portable"),
        (SSE2 | {jit.ISA_VARIABLE: "avx512vnni"}, "portable"),
        (AVX2 | {jit.ISA_VARIABLE: "avxvnni"}, "avx2"),
        (AVX2 | {jit.ISA_VARIABLE: "portable"}, "portable"),
        ({jit.ISA_VARIABLE: "neon_i8mm"}, "portable"),
    ],
)
def test_a_cpu_without_the_set_gets_the_next_best(variables, chosen):
    assert python("-c", "from kernels import jit; print(jit.ISA)", **variables).strip() == chosen


@pytest.mark.parametrize(
    ("features", "chosen"),
    [
        ({"neon", "dotprod", "i8mm"}, "neon_i8mm"),
        ({"neon", "dotprod"}, "neon_dotprod"),
        ({"neon", "i8mm"}, "portable"),
        ({"avx2", "fma", "avxvnni"}, "avxvnni"),
        ({"avx2", "fma", "avx512f", "avx512bw", "avx512vl"}, "avx2"),
        ({"avx2"}, "portable"),
        (set(), "portable"),
    ],
)
def test_the_best_set_that_a_cpu_has(monkeypatch, features, chosen):
    monkeypatch.delenv(jit.ISA_VARIABLE, raising=False)
    monkeypatch.setattr(jit, "HOST_FEATURES", frozenset(features))
    assert jit.choose_isa() == chosen


def test_a_set_that_does_not_exist_is_an_error(monkeypatch):
    monkeypatch.setenv(jit.ISA_VARIABLE, "mmx")
    with pytest.raises(ValueError, match=r"MOEMESH_ISA='mmx' is not one of .*portable"):
        jit.choose_isa()


def test_a_lower_set_says_why(monkeypatch):
    monkeypatch.setattr(jit, "ISA", "portable")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(jit, "HOST_FEATURES", frozenset({"neon", "dotprod"}))
    assert jit.better_isas() == {
        "neon_i8mm": "this machine lacks i8mm",
        "neon_dotprod": "MOEMESH_ISA rules it out",
    }


ASSEMBLY = """
from kernels import jit, limits, quantise
limits.dot_rate(limits.rate_values(), 0, 1)
print(*limits.dot_rate.inspect_asm().values())
for dispatcher, signatures in jit._REGISTRY:
    if dispatcher.__name__ == "quantise_rows":
        dispatcher.compile(signatures[0])
        print(*dispatcher.inspect_asm().values())
"""
"""The dot product of every integer kernel, and code that the compiler vectorises by itself: both compile in a
second, the kernels themselves in half a minute."""

EXPECTED = {  # set: (what its dot product compiles to, registers that it must not use)
    "avx512vnni": ("vpdpbusd", ()),
    "avxvnni": ("vpdpbusd", ("%zmm",)),
    "avx2": ("vpmaddubsw", ("%zmm", "vpdp")),
    "portable": ("pmaddwd", ("%zmm", "%ymm", "vpdp")),
}


@X86
@pytest.mark.parametrize("isa", [isa for isa in jit.supported_isas() if isa in EXPECTED])
def test_a_forced_set_is_all_the_code_uses(isa, tmp_path):
    """A fresh cache folder, since numba does not keep the assembly of what it loads."""
    variables = {jit.ISA_VARIABLE: isa, jit.CACHE_VARIABLE: str(tmp_path)}
    assembly = python("-c", ASSEMBLY, **variables)
    used, banned = EXPECTED[isa]
    assert used in assembly
    assert [name for name in banned if name in assembly] == []
