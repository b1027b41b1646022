"""The slow reference and the engine against transformers itself, on longer prompts than the goldens hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="the parity extra (torch, transformers) is not installed")

from cluster.config import EngineConfig
from cluster.library.pack import pack
from cluster.library.reader import Library
from cluster.model.checkpoint import Checkpoint
from support.checkpoints import CASES, TinyCheckpoint
from support.engines import Trace, engine_over, request, run_all
from support.goldens import golden
from support.mutations import mutations_of
from support.reference_model import ReferenceModel, relative_error
from support.transformers_oracle import Oracle

pytestmark = pytest.mark.parity

TOLERANCE = 2e-5
TOKENS = 130  # crosses two 64-token blocks


@pytest.fixture(scope="module", params=CASES, ids=lambda tiny: tiny.name)
def tiny(request: pytest.FixtureRequest) -> TinyCheckpoint:
    chosen: TinyCheckpoint = request.param
    return chosen


@pytest.fixture(scope="module")
def path(tiny: TinyCheckpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def oracle(path: Path) -> Oracle:
    return Oracle(path)


def test_logits_and_gates_agree(tiny: TinyCheckpoint, path: Path, oracle: Oracle) -> None:
    expected = oracle.forward(tiny.prompt(TOKENS))
    found = ReferenceModel(Checkpoint.open(path)).forward(tiny.prompt(TOKENS))
    assert relative_error(found.logits, expected.logits) <= TOLERANCE
    assert sorted(found.gate_ids) == sorted(expected.gate_ids)
    for layer, chosen in expected.gate_ids.items():
        clear = found.gate_margins[layer] > 1e-4
        np.testing.assert_array_equal(np.sort(found.gate_ids[layer])[clear], np.sort(chosen)[clear])


def test_the_engine_agrees(tiny: TinyCheckpoint, path: Path, oracle: Oracle, tmp_path: Path) -> None:
    """The reference path end to end: packed as float32, in chunks, through pages and experts."""
    pack(path, tmp_path / "f32", experts=("f32",))
    trace = Trace()
    config = EngineConfig(kv_bytes=8 << 20, chunk_tokens=50)
    with engine_over(Library.open(tmp_path / "f32"), config, probe=trace) as engine:
        run_all(engine, [request("a", tiny.prompt(TOKENS), kind="score")])
    assert relative_error(trace.matrix("a"), oracle.forward(tiny.prompt(TOKENS)).logits) <= TOLERANCE


def test_the_stored_golden_is_what_transformers_says(tiny: TinyCheckpoint, oracle: Oracle) -> None:
    stored = golden(tiny.name)
    assert stored.error_of(oracle.forward(stored.ids).logits) <= 2e-6


def test_what_transformers_writes_is_read(path: Path, oracle: Oracle, tmp_path: Path) -> None:
    """The same model after a trip through transformers' save_pretrained; only the spelling may differ."""
    ours = Checkpoint.open(path)
    oracle.save(tmp_path / "saved")
    theirs = Checkpoint.open(tmp_path / "saved")
    assert theirs.spec == ours.spec
    np.testing.assert_array_equal(theirs.head(), ours.head())
    layer, last = ours.spec.sparse_layers[-1], ours.spec.experts - 1
    for one, other in zip(ours.expert(layer, last), theirs.expert(layer, last), strict=True):
        np.testing.assert_array_equal(one, other)


def test_rotary_frequencies_agree(path: Path, oracle: Oracle) -> None:
    """To two units in the last place: torch's float32 power is not correctly rounded."""
    np.testing.assert_array_max_ulp(
        np.asarray(Checkpoint.open(path).spec.inv_freq, np.float32), oracle.inv_freq(), maxulp=2
    )


def test_mutations_made_in_transformers_are_noticed(tiny: TinyCheckpoint, path: Path) -> None:
    checkpoint, prompt = Checkpoint.open(path), tiny.prompt(TOKENS)
    right = ReferenceModel(checkpoint).forward(prompt).logits
    for name in mutations_of(checkpoint.spec):
        if name == "flipped_norm_topk" and checkpoint.spec.family == "mixtral":
            continue  # transformers has no such option for Mixtral
        wrong = Oracle(path, name).forward(prompt).logits
        assert relative_error(right, wrong) > 5 * TOLERANCE, name


def test_mutations_mean_the_same_on_both_sides(tiny: TinyCheckpoint, path: Path) -> None:
    """A mutated spec computes what a mutated transformers computes: the mutations are real mistakes."""
    checkpoint, prompt = Checkpoint.open(path), tiny.prompt(40)
    for name, wrong in mutations_of(checkpoint.spec).items():
        if name == "flipped_norm_topk" and checkpoint.spec.family == "mixtral":
            continue
        expected = Oracle(path, name).forward(prompt)
        found = ReferenceModel(checkpoint, wrong).forward(prompt)
        if min(margins.min() for margins in found.gate_margins.values()) > 1e-4:
            assert relative_error(found.logits, expected.logits) <= TOLERANCE, name
