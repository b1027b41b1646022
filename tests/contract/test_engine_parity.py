"""The engine's reference path (float32 weights) computes what the model's authors meant, for every family.

The oracle is the slow float64 forward of tests/support/reference_model.py, which is itself held to
transformers' logits by stored goldens (and live, with the parity extra).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cluster.config import EngineConfig
from cluster.library.reader import Library
from cluster.model.checkpoint import Checkpoint
from cluster.model.spec import ModelSpec
from support.checkpoints import CASES, TinyCheckpoint
from support.engines import Trace, engine_over, request, run_all, tiny_library
from support.mutations import mutations_of
from support.reference_model import ReferenceModel

TOKENS = 80
BOUND = 2e-5
"""max |difference| / max |logit|, of the issue's parity contract."""

CONFIG = EngineConfig(kv_bytes=8 << 20)


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def tiny(request: pytest.FixtureRequest) -> TinyCheckpoint:
    checkpoint: TinyCheckpoint = request.param
    return checkpoint


@pytest.fixture(scope="module")
def library(tiny: TinyCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Library:
    return tiny_library(tmp_path_factory.mktemp("models"), tiny.name, ("f32",))


@pytest.fixture(scope="module")
def expected(tiny: TinyCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    folder = tiny.write(tmp_path_factory.mktemp("checkpoint"))
    return np.asarray(ReferenceModel(Checkpoint.open(folder)).forward(tiny.prompt(TOKENS)).logits)


def logits(library: Library, prompt: list[int], spec: ModelSpec | None = None) -> np.ndarray:
    trace = Trace()
    with engine_over(library, CONFIG, spec=spec, probe=trace) as engine:
        answers = run_all(engine, [request("a", prompt, kind="score")])
    assert answers["a"].error is None
    return trace.matrix("a")


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def test_logits_agree_with_the_reference(
    tiny: TinyCheckpoint, library: Library, expected: np.ndarray
) -> None:
    assert distance(logits(library, tiny.prompt(TOKENS)), expected) <= BOUND


def test_mutations_are_caught(tiny: TinyCheckpoint, library: Library, expected: np.ndarray) -> None:
    mutations = mutations_of(library.spec)
    assert mutations
    for name, spec in mutations.items():
        found = distance(logits(library, tiny.prompt(TOKENS), spec), expected)
        assert found > 10 * BOUND, f"{name} changes logits by {found:.1e} only: it would slip through"


def test_greedy_tokens_agree(tiny: TinyCheckpoint, library: Library, tmp_path: Path) -> None:
    prompt = tiny.prompt(20)
    reference = ReferenceModel(Checkpoint.open(tiny.write(tmp_path)))
    with engine_over(library, CONFIG) as engine:
        found = run_all(engine, [request("a", prompt, tokens=12)])["a"].tokens
    assert found == reference.greedy(prompt, 12)
