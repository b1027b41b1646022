"""What the last layer's rows become: next tokens, log-probabilities of a text, a text's embedding."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from cluster.compute.trunk import Trunk, Workspace
from cluster.router.forward import GateProbe
from cluster.router.sampler import Sampled, Sampler
from cluster.router.sequence import Piece, Sequence
from cluster.types import Embedded, RequestId, Scored

HEAD_ROWS = 64
"""Rows whose logits are held at a time: bounds memory at large vocabularies."""


class Probe(GateProbe, Protocol):
    """Sees gates and logits as they are computed; for quality figures, traces and tests."""

    def logits(self, request_id: RequestId, position: int, logits: np.ndarray) -> None:
        """logits: [vocab] float32 after the token at `position`; copied by whoever keeps it."""


class Readout:
    """hidden, everywhere: [T, Hp] float32 rows after the last layer."""

    def __init__(self, trunk: Trunk, work: Workspace, sampler: Sampler, probe: Probe | None) -> None:
        self._trunk, self._work, self._sampler, self._probe = trunk, work, sampler, probe

    def sample(self, sequences: list[Sequence], hidden: np.ndarray) -> tuple[Sampled, list[int]]:
        """What the sequences go on with, and 0 for every one whose row held NaN or Inf. At most HEAD_ROWS."""
        logits, finite = self._trunk.head(self._work, hidden)
        self._observe(sequences, [s.length - 1 for s in sequences], logits)
        return self._sampler.sample(logits, sequences), finite.tolist()

    def take(self, piece: Piece, hidden: np.ndarray) -> bool:
        """Rows of a "score" or "embed" request, in order. False: NaN or Inf, nothing can become of it."""
        if piece.sequence.request.kind == "embed":
            return self._embed(piece.sequence, hidden)
        parts = range(0, piece.count, HEAD_ROWS)
        return all(self._score(piece, begin, hidden[begin : begin + HEAD_ROWS]) for begin in parts)

    def answer(self, sequence: Sequence) -> Scored | Embedded:
        """Of a request all of whose rows were taken."""
        if sequence.request.kind == "score":
            return Scored(sequence.id, np.concatenate(sequence.scores), tuple(sequence.alternatives))
        assert sequence.total is not None
        mean = (sequence.total / sequence.length).astype(np.float32)
        return Embedded(sequence.id, mean, sequence.length)

    def _score(self, piece: Piece, begin: int, hidden: np.ndarray) -> bool:
        sequence, position = piece.sequence, piece.begin + begin
        logits, finite = self._trunk.head(self._work, hidden)
        if not finite.all():
            return False
        self._observe([sequence] * len(hidden), list(range(position, position + len(hidden))), logits)
        targets = np.array(sequence.tokens[position + 1 : position + 1 + len(hidden)], np.int32)
        sequence.scores.append(self._sampler.score(logits[: len(targets)], targets))
        if count := sequence.request.sampling.top_logprobs:
            sequence.alternatives += self._sampler.top(logits, list(range(len(targets))), count)
        return True

    def _embed(self, sequence: Sequence, hidden: np.ndarray) -> bool:
        """Rows are added one by one in the order of the tokens, whatever the chunks were."""
        rows, finite = self._trunk.final(self._work, hidden)
        width = self._trunk.spec.hidden
        if sequence.total is None:
            sequence.total = np.zeros(width, np.float64)
        for row in rows:
            sequence.total += row[:width]
        return bool(finite.all())

    def _observe(self, sequences: list[Sequence], positions: list[int], logits: np.ndarray) -> None:
        if self._probe is None:
            return
        for sequence, position, row in zip(sequences, positions, logits, strict=True):
            self._probe.logits(sequence.id, position, row[: self._trunk.spec.vocab])
