"""`moemesh doctor`: what it finds, what it compiles, and when it says that something is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from cluster.cli import app
from kernels import jit, selfcheck

VARIANTS = sum(len(signatures) for _, signatures in jit._REGISTRY)


def doctor(*options, **variables):
    """In a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "cluster.cli.app", "doctor", *options],
        env=os.environ | variables,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.timeout(600)  # compiles what is not cached
def test_warm_then_everything_comes_from_the_cache_and_has_the_right_bits():
    first = doctor("--warm")
    assert first.returncode == 0, first.stderr
    assert "✓" in first.stdout
    assert "✗" not in first.stdout
    second = json.loads(doctor("--json").stdout)
    assert second["ok"]
    assert second["kernels"] == {"variants": VARIANTS, "cached": VARIANTS, "compiled": 0}
    assert second["bits"] == {"checked": len(selfcheck.stored()), "wrong": []}
    assert second["instruction_set"]["chosen"] == jit.ISA
    assert second["cache"] == str(jit.cache_dir())
    assert set(second["versions"]) == {
        "moemesh", "python", "ray", "numba", "llvmlite", "numpy", "numerics"
    }  # fmt: skip
    assert second["memory"]["total_bytes"] > second["memory"]["free_bytes"] > 0
    assert second["disk"]["write_bytes_per_s"] > 0
    assert {one["name"] for one in second["findings"]} <= second.keys()
    assert all({"text", "good", "fix"} < one.keys() for one in second["findings"])


def test_without_warm_nothing_is_compiled(tmp_path):
    done = doctor("--json", **{jit.CACHE_VARIABLE: str(tmp_path)})
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["kernels"] == {"variants": VARIANTS, "cached": 0}
    assert "bits" not in found
    assert list(tmp_path.rglob("*.nbc")) == []


def test_a_lower_set_is_explained():
    found = json.loads(doctor("--json", **{jit.ISA_VARIABLE: "portable"}).stdout)
    assert found["instruction_set"]["chosen"] == "portable"
    assert set(found["instruction_set"]["better"]) >= set(jit.supported_isas()) - {"portable"}


def test_an_unknown_set_is_one_line_and_exit_1():
    done = doctor(**{jit.ISA_VARIABLE: "mmx"})
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: MOEMESH_ISA='mmx' is not one of ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.timeout(600)
def test_wrong_bits_are_named_and_exit_1(monkeypatch, capsys):
    monkeypatch.setattr(selfcheck, "wrong_bits", lambda: ["attend"])
    assert app.run(["doctor", "--warm", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["ok"]
    assert found["bits"]["wrong"] == ["attend"]
    assert app.run(["doctor", "--warm"]) == 1
    assert "✗  bits" in capsys.readouterr().out
