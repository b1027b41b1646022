"""How far a packed model is from its float reference, on text: perplexity, KL divergence, gate agreement."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from cluster.cli.local import local_engine, score
from cluster.config import EngineConfig
from cluster.errors import InvalidRequest
from cluster.library.bundled import open_model
from cluster.router.engine import Engine
from cluster.router.sequence import Batch
from cluster.types import RequestId


@dataclass(frozen=True)
class Quality:
    """Of N tokens, each scored after the ones before it in its window.

    logprobs: [N - 1] float32, natural log; perplexity: exp of their negated mean.
    Against a reference (else None): its perplexity; kl: mean over positions of KL(reference || model) of the
    next-token distribution, in nats; agreement: mean over tokens and sparse layers of the share of the
    reference's top-k experts that the model's gate chose too.
    """

    logprobs: np.ndarray
    perplexity: float
    reference_perplexity: float | None = None
    kl: float | None = None
    agreement: float | None = None


class Recorder:
    """A probe that keeps the logits and the gates' choices of one window.

    distributions: by position, [vocab] float32 logits; choices: by (layer, position), the experts.
    """

    def __init__(self) -> None:
        self.distributions: dict[int, np.ndarray] = {}
        self.choices: dict[tuple[int, int], frozenset[int]] = {}

    def gate(self, layer: int, batch: Batch, ids: np.ndarray, weights: np.ndarray) -> None:
        for position, chosen in zip(batch.positions.tolist(), ids.tolist(), strict=True):
            self.choices[layer, position] = frozenset(chosen)

    def logits(self, request_id: RequestId, position: int, logits: np.ndarray) -> None:
        self.distributions[position] = logits.copy()

    def clear(self) -> None:
        self.distributions.clear()
        self.choices.clear()


def windows(ids: tuple[int, ...], length: int) -> Iterator[tuple[int, ...]]:
    """Parts of at most `length` tokens; each begins with the last token of the one before, so that every
    token after the very first is scored exactly once."""
    for begin in range(0, max(1, len(ids) - 1), length - 1):
        yield ids[begin : begin + length]


def measure(
    model: str,
    variant: str,
    ids: tuple[int, ...],
    window: int = 0,
    reference: str = "",
    config: EngineConfig | None = None,
) -> Quality:
    """Score `ids` with a model in this process, and against the library `reference` if one is named.

    window: tokens that are scored together; 0 takes the model's context.
    Raises LibraryError, InvalidRequest (a reference that is another model) and what the engine raises.
    """
    seen, expected = Recorder(), Recorder()
    library = open_model(model)
    if reference and open_model(reference).spec != library.spec:
        raise InvalidRequest(
            f"{reference} is not the same model as {library.name}; pack both from one checkpoint"
        )
    with local_engine(library, variant, config, probe=seen if reference else None) as engine:
        length = min(window or engine.context, engine.context)
        if not reference:
            return _quality(np.concatenate([score(engine, part) for part in windows(ids, length)]))
        with local_engine(reference, "", config, probe=expected) as oracle:
            return _compare(engine, seen, oracle, expected, list(windows(ids, length)))


def _compare(
    engine: Engine, seen: Recorder, oracle: Engine, expected: Recorder, parts: list[tuple[int, ...]]
) -> Quality:
    logprobs, wanted, divergences, shares = [], [], [], []
    for part in parts:
        seen.clear()
        expected.clear()
        logprobs.append(score(engine, part))
        wanted.append(score(oracle, part))
        for position, logits in expected.distributions.items():
            divergences.append(divergence(logits, seen.distributions[position]))
        for key, chosen in expected.choices.items():
            shares.append(len(chosen & seen.choices[key]) / len(chosen))
    return _quality(
        np.concatenate(logprobs), np.concatenate(wanted), float(np.mean(divergences)), float(np.mean(shares))
    )


def _quality(
    logprobs: np.ndarray,
    wanted: np.ndarray | None = None,
    kl: float | None = None,
    agreement: float | None = None,
) -> Quality:
    reference = None if wanted is None else perplexity(wanted)
    return Quality(logprobs, perplexity(logprobs), reference, kl, agreement)


def perplexity(logprobs: np.ndarray) -> float:
    """exp(-mean); 1 for a text with nothing to predict."""
    return math.exp(-float(np.mean(logprobs, dtype=np.float64))) if len(logprobs) else 1.0


def divergence(reference: np.ndarray, model: np.ndarray) -> float:
    """KL(softmax(reference) || softmax(model)) in nats; [vocab] logits."""
    p, q = _log_softmax(reference), _log_softmax(model)
    return float(np.sum(np.exp(p) * (p - q)))


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits.astype(np.float64) - float(logits.max())
    result: np.ndarray = shifted - math.log(float(np.exp(shifted).sum()))
    return result
