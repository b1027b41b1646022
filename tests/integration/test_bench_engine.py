"""`moemesh bench engine` counts tokens, steps and kernels of a real engine, and leaves numba as it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from numba.core.dispatcher import Dispatcher

from cluster.cli.bench_engine import EnginePreset, decode, kernel_clock, measure_engine
from cluster.config import EngineConfig
from support.engines import engine_over, tiny_library


def test_every_figure_has_its_id_and_the_engine_is_idle_again(tmp_path: Path) -> None:
    library, said = tiny_library(tmp_path, "qwen3-tied-gqa"), []
    longer = replace(library.spec, context=1024)
    with engine_over(library, EngineConfig(), spec=longer) as engine:
        preset = EnginePreset(repeats=1, decode_tokens=3)
        results = {r.id: r.value for r in measure_engine(engine, preset, said.append)}
        assert engine.idle
    assert list(results) == [
        "engine.prefill.tokens_per_s.512",
        *(
            f"engine.decode.{figure}.seqs{sequences}"
            for sequences in (1, 8, 32)
            for figure in ("tokens_per_s", "outside_kernels", "kernel_calls_per_step")
        ),
    ]
    assert len(said) == 4, "progress is said before every measurement"
    assert all(0 < results[f"engine.decode.outside_kernels.seqs{n}"] < 1 for n in (1, 8, 32))
    calls = {results[f"engine.decode.kernel_calls_per_step.seqs{n}"] for n in (1, 8, 32)}
    # Experts of few rows are one call, of more rows a call each for gate and up, quantise, and down.
    assert max(calls) - min(calls) <= 2 * library.spec.layers, "calls into kernels grow with the batch"


def test_decode_counts_only_the_timed_steps(tmp_path: Path) -> None:
    with engine_over(tiny_library(tmp_path, "qwen3-tied-gqa"), EngineConfig()) as engine:
        run = decode(engine, sequences=4, tokens=5)
    assert (run.tokens, run.steps) == (4 * 5, 5)
    assert 0 < run.kernel_seconds < run.seconds


def test_the_clock_gives_the_dispatcher_back() -> None:
    before = Dispatcher.__call__
    with pytest.raises(ZeroDivisionError), kernel_clock():
        raise ZeroDivisionError
    assert Dispatcher.__call__ is before
