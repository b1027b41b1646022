"""The engine's reference path (float32 weights) computes what the model's authors meant, for every family.

The oracle is transformers: its float32 logits, gates and greedy tokens are stored by make_goldens.py, and
tests/contract/parity asks it live.
"""

from __future__ import annotations

import numpy as np
import pytest

from cluster.config import EngineConfig
from cluster.library.reader import Library
from cluster.model.spec import ModelSpec
from cluster.types import RequestId
from support.checkpoints import CASES, TinyCheckpoint
from support.engines import Trace, engine_over, request, run_all, tiny_library
from support.goldens import GREEDY_STEPS, Golden, golden
from support.mutations import mutations_of

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
def stored(tiny: TinyCheckpoint) -> Golden:
    return golden(tiny.name)


def logits(library: Library, prompt: list[int], spec: ModelSpec | None = None) -> np.ndarray:
    trace = Trace()
    with engine_over(library, CONFIG, spec=spec, probe=trace) as engine:
        answers = run_all(engine, [request("a", prompt, kind="score")])
    assert answers["a"].error is None
    return trace.matrix("a")


def test_logits_agree_with_transformers(library: Library, stored: Golden) -> None:
    assert stored.error_of(logits(library, stored.ids)) <= BOUND


def test_mutations_are_caught(library: Library, stored: Golden) -> None:
    mutations = mutations_of(library.spec)
    assert mutations
    for name, spec in mutations.items():
        found = stored.error_of(logits(library, stored.ids, spec))
        assert found > 5 * BOUND, f"{name} changes logits by {found:.1e} only: it would slip through"


def test_the_gates_choose_what_transformers_chose(library: Library, stored: Golden) -> None:
    trace = Trace()
    with engine_over(library, CONFIG, probe=trace) as engine:
        run_all(engine, [request("a", stored.ids, kind="score")])
    choices = trace.choices[RequestId("a")]
    found = [[choices[layer, t] for t in range(len(stored.ids))] for layer in library.spec.sparse_layers]
    np.testing.assert_array_equal(np.sort(found), np.sort(stored.gates))


def test_greedy_tokens_agree_for_64_steps(library: Library, stored: Golden) -> None:
    with engine_over(library, CONFIG) as engine:
        found = run_all(engine, [request("a", stored.greedy_prompt, tokens=GREEDY_STEPS)])["a"].tokens
    assert found == stored.greedy
