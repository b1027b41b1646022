"""Readers and reference on a trained checkpoint: the one the bundled library is packed from.

It stays out of the repository: MOEMESH_REFERENCE_MODEL names its folder, else these tests are skipped.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.config import EngineConfig
from cluster.library.pack import pack
from cluster.library.reader import Library
from cluster.model.checkpoint import Checkpoint
from support.engines import engine_over, request, run_all
from support.reference_model import ReferenceModel, softmax

FOLDER = os.environ.get("MOEMESH_REFERENCE_MODEL", "")

pytestmark = pytest.mark.skipif(
    not FOLDER, reason="MOEMESH_REFERENCE_MODEL does not name the folder of the reference checkpoint"
)


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return Checkpoint.open(FOLDER)


@pytest.fixture(scope="module")
def cases() -> list[dict[str, Any]]:
    golden: dict[str, Any] = json.loads((Path(FOLDER) / "golden.json").read_text())
    return list(golden["cases"])


def test_prompts_tokenise_to_the_stored_ids(checkpoint: Checkpoint, cases: list[dict[str, Any]]) -> None:
    tokenizer = checkpoint.tokenizer()
    assert tokenizer is not None
    for case in cases:
        assert tokenizer.encode(case["prompt"]) == case["prompt_ids"]
        assert tokenizer.decode(case["prompt_ids"]) == case["prompt"]


def test_greedy_tokens_and_log_probabilities(checkpoint: Checkpoint, cases: list[dict[str, Any]]) -> None:
    """Every greedy id is the arg max behind its own prefix, which is the same as generating it. The stored
    log-probabilities are those of every id after the first, prompt and continuation."""
    model = ReferenceModel(checkpoint, dtype=np.float32)
    for case in cases:
        prompt, greedy = case["prompt_ids"], case["greedy_ids"]
        logits = model.forward(prompt + greedy).logits[:-1].astype(np.float64)
        assert logits[len(prompt) - 1 :].argmax(-1).tolist() == greedy, case["prompt"]
        targets = np.asarray((prompt + greedy)[1:])
        logprobs = np.log(softmax(logits)[np.arange(len(targets)), targets])
        np.testing.assert_allclose(logprobs, case["logprobs"], atol=2e-5)


def test_the_engine_generates_the_stored_tokens(cases: list[dict[str, Any]], tmp_path: Path) -> None:
    """The reference path, all prompts in one batch: 64 greedy tokens each, as transformers chose them."""
    pack(FOLDER, tmp_path / "f32", experts=("f32",))
    requests = [request(case["prompt"], case["prompt_ids"], tokens=64) for case in cases]
    with engine_over(Library.open(tmp_path / "f32"), EngineConfig()) as engine:
        answers = run_all(engine, requests)
    for case in cases:
        assert answers[case["prompt"]].tokens == case["greedy_ids"], case["prompt"]
