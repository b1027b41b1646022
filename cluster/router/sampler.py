"""From logits to tokens: every sequence's sampling parameters in arrays, one kernel call a batch."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from cluster.compute.scratch import Scratch
from cluster.compute.threads import Workers
from cluster.router.sequence import Sequence
from cluster.types import SamplingParams
from kernels import layout, sampling

_NO_TOKENS = np.zeros(0, np.int32)


class Chosen(NamedTuple):
    """Sampling parameters of B sequences. options: temperature, top_k, top_p, min_p, repetition penalty, [B]
    each; seed: [B] uint64; penalised: whether the penalty changes anything."""

    options: tuple[np.ndarray, ...]
    seed: np.ndarray
    penalised: list[bool]


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
        self._penalty[slot] = params.repetition_penalty
        self._seed[slot] = params.seed

    def sample(self, logits: np.ndarray, sequences: list[Sequence]) -> tuple[np.ndarray, np.ndarray]:
        """([B] int32 tokens, [B] float32 log-probabilities) for logits [B, padded vocab].

        The draw is keyed by the seed and by the new token's index in its sequence.
        """
        count = len(sequences)
        chosen = self._choose([sequence.slot for sequence in sequences])
        position = np.array([sequence.length for sequence in sequences], np.int64)
        start, history = self._history(chosen, sequences)
        token = self._work.vector("token", count, np.int32)
        logprob = self._work.vector("logprob", count, np.float32)
        rows = (*chosen.options, start, history, chosen.seed, position)
        self._workers.run_each(
            sampling.sample_rows,
            count,
            lambda thread: (
                *(logits, self._vocab, *rows),
                *(self._scratch[thread], self._ids[thread], token, logprob),
            ),
        )
        return token, logprob

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
            chosen = Chosen(tuple(option[slots] for option in options), self._seed[slots], penalised)
            self._chosen = slots, chosen
        return self._chosen[1]

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
