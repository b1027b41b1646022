"""Compiled kernels are found again, and never when anything that decides their code has changed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kernels import jit, quantise, warm

ROOT = Path(__file__).parents[2]

SUM_OF_ONES = """
import json
import numpy as np
from kernels import jit, quantise
sums = np.zeros((1, 1), np.int32)
quantise.group_sums(np.ones((1, 64), np.int8), sums, 0, 1)
stats = quantise.group_sums.stats
hits, misses = (sum(count.values()) for count in (stats.cache_hits, stats.cache_misses))
print(json.dumps({"sum": int(sums[0, 0]), "hits": hits, "misses": misses, "folder": str(jit.cache_dir())}))
"""


@pytest.fixture
def copy(tmp_path):
    """The package in a folder of its own, and a function that runs it with a cache of its own."""
    shutil.copytree(ROOT / "kernels", tmp_path / "kernels", ignore=shutil.ignore_patterns("__pycache__"))
    environment = os.environ | {"PYTHONPATH": str(tmp_path), jit.CACHE_VARIABLE: str(tmp_path / "cache")}

    def run(**variables):
        done = subprocess.run(
            [sys.executable, "-c", SUM_OF_ONES],
            env=environment | variables,
            capture_output=True,
            text=True,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return tmp_path / "kernels", run


def replace(file, old, new):
    text = file.read_text()
    assert text.count(old) == 1
    file.write_text(text.replace(old, new))


def test_an_intrinsic_in_another_file_makes_the_cache_miss(copy):
    package, run = copy
    cold, again = run(), run()
    assert (cold["sum"], cold["hits"], cold["misses"]) == (64, 0, 1)
    assert (again["sum"], again["hits"], again["misses"]) == (64, 1, 0)

    adds = "reduce_add_i32 = _unary(types.int32, i32x16, lambda builder, a: _fold(builder, a, builder.add))"
    replace(package / "simd" / "ops.py", adds, adds.replace("builder.add", "builder.or_"))
    changed = run()
    assert (changed["sum"], changed["hits"], changed["misses"]) == (4, 0, 1)
    assert changed["folder"] != cold["folder"]

    replace(package / "simd" / "ops.py", adds.replace("builder.add", "builder.or_"), adds)
    assert run() == again


def test_another_instruction_set_is_another_folder(copy):
    _, run = copy
    folders = {run(**{jit.ISA_VARIABLE: isa})["folder"] for isa in jit.supported_isas()}
    assert len(folders) == len(jit.supported_isas())


def test_a_second_start_finds_every_kernel():
    done = subprocess.run(
        [sys.executable, "-m", "kernels.warm"], capture_output=True, text=True, cwd=ROOT, check=True
    )
    variants = sum(len(signatures) for _, signatures in jit._REGISTRY)
    assert f", 0 variants compiled, {variants} loaded, " in done.stdout.splitlines()[-1]


def test_what_is_cached_is_counted_without_compiling():
    variants = sum(len(signatures) for _, signatures in jit._REGISTRY)
    assert jit.cached() == (variants, variants)


def test_a_warm_process_compiles_nothing_more():
    warm.compile_all()
    with pytest.raises((TypeError, RuntimeError)):
        quantise.group_sums(np.ones((1, 64), np.int16), np.zeros((1, 1), np.int32), 0, 1)


APART = """
from kernels import apart, jit, warm
apart.compile_apart(["add_rows", "no such kernel", "round_bf16"], 1, print)
apart.compile_apart(["round_bf16", "group_sums"], 2, lambda name: None)
print(sorted({"add_rows", "round_bf16", "group_sums"} - set(jit.uncached())))
"""


def test_workers_fill_the_cache_that_they_share(tmp_path):
    """A worker that fails leaves the rest to whoever needs it."""
    done = subprocess.run(
        [sys.executable, "-c", APART],
        env=os.environ | {jit.CACHE_VARIABLE: str(tmp_path)},
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    assert done.stdout.splitlines() == ["add_rows", "['add_rows', 'group_sums', 'round_bf16']"]
