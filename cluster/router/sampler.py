"""From logits to tokens: every sequence's sampling parameters in arrays, one kernel call a batch."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cluster.compute.scratch import Scratch
from cluster.compute.threads import Workers
from cluster.router.edits import edit, edits
from cluster.router.sequence import Sequence
from cluster.types import Alternatives, SamplingParams
from kernels import alternatives, layout, sampling

_NO_TOKENS = np.zeros(0, np.int32)


class Chosen(NamedTuple):
    """Sampling parameters of B sequences. options: temperature, top_k, top_p, min_p, repetition penalty, [B]
    each; seed: [B] uint64; penalised: whether the kernel's penalty changes anything; edited: rows whose
    logits are changed before the kernel sees them; listed: rows that want alternatives; unlisted: B times
    none."""

    options: tuple[np.ndarray, ...]
    seed: np.ndarray
    penalised: list[bool]
    edited: list[int]
    listed: list[int]
    unlisted: list[Alternatives]


class Sampled(NamedTuple):
    """What B sequences go on with: tokens, their log-probabilities, and alternatives to them, () for a
    sequence that asked for none."""

    tokens: list[int]
    logprobs: list[float]
    alternatives: list[Alternatives]


class Sampler:
    """slots: rows of the engine's page table; a sequence keeps its parameters under its slot."""

    def __init__(self, vocab: int, slots: int, workers: Workers) -> None:
        self._vocab, self._workers = vocab, workers
        self._temperature = np.zeros(slots, np.float32)
        self._top_k = np.zeros(slots, np.int32)
        self._top_p = np.ones(slots, np.float32)
        self._min_p = np.zeros(slots, np.float32)
        self._penalty = np.ones(slots, np.float32)
        self._seed = np.zeros(slots, np.uint64)
        self._edited = np.zeros(slots, np.bool_)
        self._listed = np.zeros(slots, np.int32)
        padded = layout.pad(vocab, layout.ROWS)
        self._scratch = [np.zeros((2, padded), np.float32) for _ in range(workers.threads)]
        self._ids = [np.zeros(padded, np.int32) for _ in range(workers.threads)]
        self._work = Scratch()
        self._chosen: tuple[list[int], Chosen] | None = None

    def assign(self, slot: int, params: SamplingParams) -> None:
        self._chosen = None
        self._temperature[slot] = params.temperature
        self._top_k[slot] = params.top_k
        self._top_p[slot] = params.top_p
        self._min_p[slot] = params.min_p
        self._edited[slot] = edits(params)
        self._penalty[slot] = 1.0 if self._edited[slot] else params.repetition_penalty
        self._listed[slot] = params.top_logprobs
        self._seed[slot] = params.seed

    def sample(self, logits: np.ndarray, sequences: list[Sequence]) -> Sampled:
        """For logits [B, padded vocab], which stay as they are.

        The draw is keyed by the seed and by the new token's index in its sequence.
        """
        count = len(sequences)
        chosen = self._choose([sequence.slot for sequence in sequences])
        position = np.array([sequence.length for sequence in sequences], np.int64)
        start, history = self._history(chosen, sequences)
        token = self._work.vector("token", count, np.int32)
        logprob = self._work.vector("logprob", count, np.float32)
        rows = (*chosen.options, start, history, chosen.seed, position)
        raw = logits
        if chosen.edited:
            logits = self._edit(raw, sequences, chosen.edited)
        self._workers.run_each(
            sampling.sample_rows,
            count,
            lambda thread: (
                *(logits, self._vocab, *rows),
                *(self._scratch[thread], self._ids[thread], token, logprob),
            ),
        )
        if chosen.edited:  # log-probabilities are those of the model
            self._workers.run(sampling.score_rows, count, raw, self._vocab, token, logprob)
        listed = self._list(raw, sequences, chosen.listed) if chosen.listed else chosen.unlisted
        return Sampled(token.tolist(), logprob.tolist(), listed)

    def _list(self, logits: np.ndarray, sequences: list[Sequence], rows: list[int]) -> list[Alternatives]:
        """Of every sequence, as many as its request asked for; none but `rows` did."""
        found: list[Alternatives] = [()] * len(sequences)
        wanted = [sequences[row].request.sampling.top_logprobs for row in rows]
        for row, count, pairs in zip(rows, wanted, self.top(logits, rows, max(wanted)), strict=True):
            found[row] = pairs[:count]
        return found

    def top(self, logits: np.ndarray, rows: list[int], count: int) -> list[Alternatives]:
        """The `count` most likely tokens of these rows of logits [B, padded vocab]."""
        count = min(count, self._vocab)
        ids, values = np.empty((len(rows), count), np.int32), np.empty((len(rows), count), np.float32)
        at = np.array(rows, np.int64)
        self._workers.run(alternatives.top_rows, len(rows), logits, self._vocab, at, ids, values)
        lists = zip(ids.tolist(), values.tolist(), strict=True)
        return [tuple(zip(row, value, strict=True)) for row, value in lists]

    def score(self, logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """[B] float32 log-probabilities of `targets` [B] int32 under logits [B, padded vocab]."""
        logprob = np.empty(len(targets), np.float32)
        self._workers.run(sampling.score_rows, len(targets), logits, self._vocab, targets, logprob)
        return logprob

    def _choose(self, slots: list[int]) -> Chosen:
        """The parameters of these slots; a step of decode has the same ones as the step before."""
        if self._chosen is None or self._chosen[0] != slots:
            options = (self._temperature, self._top_k, self._top_p, self._min_p, self._penalty)
            penalised = (self._penalty[slots] != 1).tolist()
            edited, listed = np.flatnonzero(self._edited[slots]), np.flatnonzero(self._listed[slots])
            chosen = Chosen(
                tuple(option[slots] for option in options),
                self._seed[slots],
                penalised,
                edited.tolist(),
                listed.tolist(),
                [()] * len(slots),
            )
            self._chosen = slots, chosen
        return self._chosen[1]

    def _edit(self, logits: np.ndarray, sequences: list[Sequence], rows: list[int]) -> np.ndarray:
        """A copy of logits, edited in these rows."""
        edited = self._work.take("edited", len(logits), logits.shape[1], np.float32)
        np.copyto(edited, logits)
        words = -(-self._vocab // 32)
        scratch = (
            self._work.take("mask", 1, words, np.int32),
            self._work.take("caps", 4 * words, 8, np.float32),
        )
        for row in rows:
            edit(edited[row, : self._vocab], sequences[row], scratch)
        return edited

    @staticmethod
    def _history(chosen: Chosen, sequences: list[Sequence]) -> tuple[np.ndarray, np.ndarray]:
        """([B + 1] int64, int32): tokens of the sequences that have a repetition penalty, end to end."""
        start = np.zeros(len(sequences) + 1, np.int64)
        if not any(chosen.penalised):
            return start, _NO_TOKENS
        seen = [
            s.tokens if penalised else [] for s, penalised in zip(sequences, chosen.penalised, strict=True)
        ]
        np.cumsum([len(tokens) for tokens in seen], out=start[1:])
        return start, np.array([token for tokens in seen for token in tokens], np.int32)
