"""Figures of one process: the engine with its experts beside it, no sockets and no Ray."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from numba.core.dispatcher import Dispatcher

from cluster.cli.report import Result, result
from cluster.router.engine import Engine
from cluster.types import Emitted, EngineRequest, Failed, RequestId, SamplingParams

PREFILL_TOKENS = 512
DECODE_PROMPT_TOKENS = 32
SEQUENCES = (1, 8, 32)

Progress = Callable[[str], None]


@dataclass(frozen=True)
class EnginePreset:
    """repeats: runs of every figure; decode_tokens: tokens that each sequence generates while timed."""

    repeats: int
    decode_tokens: int


ENGINE_PRESETS = {"minimal": EnginePreset(3, 32), "full": EnginePreset(10, 128)}


@dataclass
class KernelClock:
    """seconds: time that the watching thread spent inside compiled kernels."""

    seconds: float = 0.0
    calls: int = 0


@contextmanager
def kernel_clock() -> Iterator[KernelClock]:
    """Time every kernel called from Python while the context is open, by wrapping numba's dispatcher.

    Costs about half a microsecond a call, which counts as time outside kernels. One compute thread only:
    kernels of helper threads would be added up.
    """
    clock, call = KernelClock(), Dispatcher.__call__
    dispatcher: Any = Dispatcher

    def timed(self: Any, *args: Any) -> Any:
        start = time.perf_counter()
        try:
            return call(self, *args)
        finally:
            clock.seconds += time.perf_counter() - start
            clock.calls += 1

    dispatcher.__call__ = timed
    try:
        yield clock
    finally:
        del dispatcher.__call__  # the slot of its C base class is in force again


@dataclass(frozen=True)
class Decode:
    """One timed run. steps: calls of Engine.step while timed."""

    tokens: int
    steps: int
    seconds: float
    kernel_seconds: float
    kernel_calls: int


def measure_engine(engine: Engine, preset: EnginePreset, progress: Progress) -> list[Result]:
    """Run on an idle engine with one compute thread; it is idle again afterwards."""
    prefill_seconds(engine)  # the first run touches every page for the first time
    speeds = []
    for run in range(preset.repeats):
        progress(f"prefill, run {run + 1} of {preset.repeats}")
        speeds.append(PREFILL_TOKENS / prefill_seconds(engine))
    results = [result("engine.prefill.tokens_per_s.512", speeds, "tokens/s")]
    for sequences in SEQUENCES:
        runs = []
        for run in range(preset.repeats):
            progress(f"decode, {sequences} sequences, run {run + 1} of {preset.repeats}")
            runs.append(decode(engine, sequences, preset.decode_tokens))
        name = f"seqs{sequences}"
        speeds = [r.tokens / r.seconds for r in runs]
        outside = [1 - r.kernel_seconds / r.seconds for r in runs]
        calls = [r.kernel_calls / r.steps for r in runs]
        results += [
            result(f"engine.decode.tokens_per_s.{name}", speeds, "tokens/s"),
            result(f"engine.decode.outside_kernels.{name}", outside, "ratio"),
            result(f"engine.decode.kernel_calls_per_step.{name}", calls, "calls"),
        ]
    return results


def prefill_seconds(engine: Engine) -> float:
    """Seconds from an idle engine to the first token after a prompt of 512 tokens."""
    engine.submit(_request(engine, "prefill", PREFILL_TOKENS, new_tokens=1))
    start = time.perf_counter()
    _finish(engine)
    return time.perf_counter() - start


def decode(engine: Engine, sequences: int, tokens: int) -> Decode:
    """Time the steps in which every sequence generates and none is prefilled."""
    for number in range(sequences):
        engine.submit(_request(engine, f"decode-{number}", DECODE_PROMPT_TOKENS, tokens + 1, offset=number))
    started: set[RequestId] = set()
    while len(started) < sequences:
        started |= {event.request_id for event in _step(engine)}
    before = engine.stats.steps
    with kernel_clock() as clock:
        start = time.perf_counter()
        made = _finish(engine)
        seconds = time.perf_counter() - start
    return Decode(made, engine.stats.steps - before, seconds, clock.seconds, clock.calls)


def _request(engine: Engine, name: str, prompt: int, new_tokens: int, offset: int = 0) -> EngineRequest:
    """A prompt that spreads over the vocabulary, the same in every run."""
    vocab = engine.trunk.spec.vocab
    ids = tuple((7919 * (i + 31 * offset) + 13) % vocab for i in range(prompt))
    sampling = SamplingParams(max_tokens=new_tokens, ignore_eos=True)
    return EngineRequest(RequestId(name), ids, sampling)


def _finish(engine: Engine) -> int:
    """Step until nothing runs or waits; the number of tokens generated."""
    made = 0
    while not engine.idle:
        made += len(_step(engine))
    return made


def _step(engine: Engine) -> list[Emitted]:
    """One step; an error of a request is raised."""
    events = engine.step()
    for event in events:
        if isinstance(event, Failed):
            raise event.error
    return [event for event in events if isinstance(event, Emitted)]
