"""The most likely tokens of a row, with their log-probabilities."""

from __future__ import annotations

import numpy as np

from kernels.jit import F32_2, F32_2R, I32_2, I64_1R, INT, VOID, kernel
from kernels.sampling import log_sum_exp


@kernel(VOID(F32_2R, INT, I64_1R, I32_2, F32_2, INT, INT))
def top_rows(logits, vocab, rows, ids, logprobs, begin, end):  # type: ignore[no-untyped-def]
    """ids[j] and logprobs[j]: the largest logits of row rows[j], for begin <= j < end, ties to the lower id.

    logits: [B, Vp] float32 without NaN, Vp a multiple of 16, columns from vocab on ignored; ids, logprobs:
    [J, count] with 1 <= count <= vocab. logprobs are bit for bit those of `score_rows`.
    """
    count = ids.shape[1]
    value = np.empty(count, np.float32)
    for j in range(begin, end):
        row, kept = rows[j], 0
        for i in range(vocab):
            x = logits[row, i]
            if kept == count and not x > value[count - 1]:
                continue
            place = min(kept, count - 1)
            while place > 0 and x > value[place - 1]:
                value[place], ids[j, place] = value[place - 1], ids[j, place - 1]
                place -= 1
            value[place], ids[j, place] = x, i
            kept = min(kept + 1, count)
        log_sum = log_sum_exp(logits, row * logits.shape[1] * 4, vocab)
        for place in range(count):
            logprobs[j, place] = np.float32(np.float64(value[place]) - log_sum)
