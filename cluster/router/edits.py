"""What requests change in their logits before the sampling kernel sees them: masks and penalties.

Elementwise float32 on a row's own copy, so that it depends on neither batch nor machine; rows without such
wishes never come here. Order: repetition
penalty, presence and frequency penalty, mask.
"""

from __future__ import annotations

import numpy as np

from cluster.router.sequence import Sequence
from cluster.types import SamplingParams

FORBIDDEN = np.float32(-np.inf)


def edits(params: SamplingParams) -> bool:
    """Whether the row has to be edited; a repetition penalty alone is the kernel's."""
    return bool(params.presence_penalty or params.frequency_penalty or params.grammar)


def edit(row: np.ndarray, sequence: Sequence, words: np.ndarray) -> None:
    """Change `row`, [vocab] float32, as the sequence's request wants. words: scratch, [1, n] int32."""
    params = sequence.request.sampling
    if params.repetition_penalty != 1:
        repeat(row, np.array(sequence.tokens, np.int32), np.float32(params.repetition_penalty))
    if params.presence_penalty or params.frequency_penalty:
        generated = np.array(sequence.tokens[sequence.prompt_length :], np.int32)
        presence, frequency = np.float32(params.presence_penalty), np.float32(params.frequency_penalty)
        subtract(row, generated, presence, frequency)
    if sequence.grammar is not None:
        sequence.grammar.allowed(words, 0)
        forbid(row, words[0])


def repeat(row: np.ndarray, seen: np.ndarray, penalty: np.float32) -> None:
    """Positive logits of the ids in `seen` divided by the penalty, others multiplied, as in `sample_rows`."""
    ids = np.unique(seen)
    values = row[ids]
    row[ids] = np.where(values > 0, values / penalty, values * penalty)


def subtract(row: np.ndarray, generated: np.ndarray, presence: np.float32, frequency: np.float32) -> None:
    """row[t] = (row[t] − frequency · times t was generated) − presence, for every generated t."""
    ids, counts = np.unique(generated, return_counts=True)
    row[ids] = (row[ids] - frequency * counts.astype(np.float32)) - presence


def forbid(row: np.ndarray, words: np.ndarray) -> None:
    """-inf where the token's bit, t % 32 of word t // 32, is 0."""
    bits = np.unpackbits(words.view(np.uint8), count=len(row), bitorder="little")
    np.copyto(row, FORBIDDEN, where=bits == 0)
