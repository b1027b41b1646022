"""What transformers computed on the tiny checkpoints is what our readers and the slow reference compute.

The goldens are made by make_goldens.py. tests/contract/parity asks transformers itself.
"""

from __future__ import annotations

import numpy as np
import pytest

from cluster.model.checkpoint import Checkpoint
from support.checkpoints import CASES, TinyCheckpoint
from support.goldens import GREEDY_STEPS, Golden, golden, weights_crc
from support.mutations import mutations_of
from support.reference_model import ReferenceModel

TOLERANCE = 2e-5


@pytest.fixture(scope="module", params=CASES, ids=lambda tiny: tiny.name)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    tiny: TinyCheckpoint = request.param
    return Checkpoint.open(tiny.write(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def stored(checkpoint: Checkpoint) -> Golden:
    return golden(checkpoint.name)


def test_the_checkpoint_is_the_one_the_golden_was_made_on(checkpoint: Checkpoint, stored: Golden) -> None:
    assert weights_crc(checkpoint.folder) == stored.weights, (
        "the generator of tiny checkpoints changed; help: run tests/contract/make_goldens.py"
    )


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_logits_and_gates_agree(checkpoint: Checkpoint, stored: Golden, dtype: type) -> None:
    output = ReferenceModel(checkpoint, dtype=dtype).forward(stored.ids)
    assert stored.error_of(output.logits) <= TOLERANCE
    gates = np.stack([output.gate_ids[layer] for layer in checkpoint.spec.sparse_layers])
    np.testing.assert_array_equal(np.sort(gates), np.sort(stored.gates))


def test_greedy_tokens_agree(checkpoint: Checkpoint, stored: Golden) -> None:
    assert ReferenceModel(checkpoint).greedy(stored.greedy_prompt, GREEDY_STEPS) == stored.greedy


def test_every_mutation_is_noticed(checkpoint: Checkpoint, stored: Golden) -> None:
    for name, wrong in mutations_of(checkpoint.spec).items():
        error = stored.error_of(ReferenceModel(checkpoint, wrong).forward(stored.ids).logits)
        assert error > 5 * TOLERANCE, f"{name} moves the logits by {error:.1e} only"
