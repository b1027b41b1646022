"""Make tests/data/goldens: what transformers computes on the tiny checkpoints of support.checkpoints.

    pip install 'moemesh[parity]'
    PYTHONPATH=.:tests python tests/contract/make_goldens.py

A golden is an npz of

    ids          [80]         the prompt, crossing a 64-token block and every sliding window
    positions    [4]          positions whose logits are kept whole,
    logits       [4, vocab]   float32
    scale        []           max |logit| over all positions
    top_ids, top_logits [80, 4]  the best four of every position
    gates        [sparse layers, 80, top_k]  the chosen experts, best first
    greedy       [64]         greedy continuation of the first 16 ids, end-of-sequence ignored
    greedy_margin []          smallest gap between the best and second-best logit on that way
    weights      []           CRC-32 of the checkpoint's tensors, so that a changed generator is noticed

It refuses to write a golden that could flip by rounding, or on which a mutation would go unnoticed.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

from cluster.model.checkpoint import Checkpoint
from support.checkpoints import CASES, TinyCheckpoint
from support.goldens import GREEDY_PROMPT, GREEDY_STEPS, TOKENS, golden_path, weights_crc
from support.mutations import mutations_of
from support.reference_model import ReferenceModel, relative_error
from support.transformers_oracle import Oracle

POSITIONS = (0, 21, 64, TOKENS - 1)
TOLERANCE = 2e-5
MUTATION_FACTOR = 5  # a mutation must move the logits by this multiple of the tolerance
GATE_MARGIN = 5e-4
GREEDY_MARGIN = 2.5e-4


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            make_golden(case, case.write(Path(folder)))


def make_golden(case: TinyCheckpoint, path: Path) -> None:
    checkpoint, oracle, ids = Checkpoint.open(path), Oracle(path), case.prompt(TOKENS)
    expected = oracle.forward(ids)
    own = ReferenceModel(checkpoint).forward(ids)
    error = relative_error(own.logits, expected.logits)
    gate_margin = min(float(margins.min()) for margins in own.gate_margins.values())
    greedy, greedy_margin = greedy_with_margin(oracle, ids[:GREEDY_PROMPT])
    moved = mutation_effects(path, checkpoint, ids, expected.logits)
    report(
        f"{case.name}: reference off by {error:.1e}, gate margin {gate_margin:.1e}, "
        f"greedy margin {greedy_margin:.1e} over {len(set(greedy))} tokens; transformers moves by "
        + ", ".join(f"{effect:.1e} ({name})" for name, effect in moved.items())
    )
    if error > TOLERANCE or gate_margin < GATE_MARGIN or greedy_margin < GREEDY_MARGIN:
        sys.exit(f"{case.name}: draw another seed")
    if min(moved.values()) < MUTATION_FACTOR * TOLERANCE:
        sys.exit(f"{case.name}: a mutation would go unnoticed")
    best = np.argsort(-expected.logits, axis=-1, kind="stable")[:, :4]
    np.savez_compressed(
        golden_path(case.name),
        ids=np.asarray(ids, np.int32),
        positions=np.asarray(POSITIONS, np.int32),
        logits=expected.logits[list(POSITIONS)],
        scale=np.abs(expected.logits).max(),
        top_ids=best.astype(np.int32),
        top_logits=np.take_along_axis(expected.logits, best, -1),
        gates=np.stack([expected.gate_ids[layer] for layer in sorted(expected.gate_ids)]).astype(np.int16),
        greedy=np.asarray(greedy, np.int32),
        greedy_margin=np.float32(greedy_margin),
        weights=np.uint32(weights_crc(path)),
    )


def greedy_with_margin(oracle: Oracle, prompt: list[int]) -> tuple[list[int], float]:
    greedy = oracle.greedy(prompt, GREEDY_STEPS)
    logits = oracle.forward(prompt + greedy).logits[len(prompt) - 1 : -1]
    second, first = np.sort(logits, axis=-1)[:, -2:].T
    return greedy, float((first - second).min())


def mutation_effects(
    path: Path, checkpoint: Checkpoint, ids: list[int], logits: np.ndarray
) -> dict[str, float]:
    """How far each mutation, made in transformers itself, moves its logits.

    Mixtral's renormalisation is no option of transformers: there our reference stands in.
    """
    effects = {}
    for name, wrong in mutations_of(checkpoint.spec).items():
        if name == "flipped_norm_topk" and checkpoint.spec.family == "mixtral":
            mutated = ReferenceModel(checkpoint, wrong).forward(ids).logits
        else:
            mutated = Oracle(path, name).forward(ids).logits
        effects[name] = relative_error(mutated, logits)
    return effects


def report(line: str) -> None:
    sys.stdout.write(line + "\n")


if __name__ == "__main__":
    main()
