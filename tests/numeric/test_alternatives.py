"""The most likely tokens of rows against sorting, and their log-probabilities against the scoring kernel."""

from __future__ import annotations

import numpy as np
import pytest

from kernels.alternatives import top_rows
from kernels.sampling import score_rows

F = np.float32


@pytest.mark.parametrize("vocab", [1, 5, 16, 100, 1000])
@pytest.mark.parametrize("count", [1, 3, 20])
@pytest.mark.parametrize("ties", [False, True])
def test_the_largest_come_first_and_ties_by_id(vocab: int, count: int, ties: bool) -> None:
    draws = np.random.default_rng(vocab + count)
    logits = draws.normal(size=(4, vocab)).astype(F)
    if ties:
        logits = np.round(logits)
    logits[1] = np.sort(logits[1])  # every id replaces an earlier one
    logits[2, vocab // 2 :] = -np.inf
    padded = np.pad(logits, [(0, 0), (0, -vocab % 16)], constant_values=1e9)
    rows, count = np.array([2, 0, 3, 1, 1]), min(count, vocab)
    ids, logprobs = np.full((5, count), -1, np.int32), np.full((5, count), np.nan, F)
    for begin, end in ((0, 2), (2, 5)):
        top_rows(padded, vocab, rows, ids, logprobs, begin, end)
    for place, row in enumerate(rows):
        expected = np.argsort(-logits[row], kind="stable")[:count]
        assert ids[place].tolist() == expected.tolist()
        for token, value in zip(ids[place], logprobs[place], strict=True):
            scored = np.empty(1, F)
            score_rows(padded[row : row + 1], vocab, np.array([token], np.int32), scored, 0, 1)
            assert scored[0].tobytes() == value.tobytes()
