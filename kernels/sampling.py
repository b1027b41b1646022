"""Choosing the next token: log-probabilities, penalty, temperature, filters and the draw.

Order of the filters, that of Hugging Face transformers: repetition penalty, temperature, top-k, top-p,
min-p (vLLM applies min-p before top-k and top-p). kernels/candidates.py has the filters and the draw.
"""

from __future__ import annotations

import numpy as np

from kernels.candidates import BINS, draw, drop_below, keep_first, wanted_mass
from kernels.jit import (
    F32_1,
    F32_1R,
    F32_2,
    F32_2R,
    I32_1,
    I32_1R,
    I64_1R,
    INT,
    U64_1R,
    VOID,
    inline,
    kernel,
)
from kernels.maths import exp_f32x16, log_f64
from kernels.simd import (
    load_f32x16,
    max_f32,
    reduce_add_f32,
    reduce_max_f32,
    splat_f32,
    store_f32x16,
)
from kernels.simd.elements import select_first

MAX_VOCAB = 1 << 20
"""Candidates weigh up to 2^42 each, so their sum stays within 2^62."""

_ZERO, _ONE = np.float32(0.0), np.float32(1.0)
_LOWEST = np.float32(-np.inf)

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)


@inline
def philox4x32(c0, c1, c2, c3, k0, k1):  # type: ignore[no-untyped-def]
    """Philox4x32-10 (Salmon et al. 2011): four 32-bit words of a counter and a key, all uint64 below 2^32."""
    for _ in range(10):
        a, b = _M0 * c0, _M1 * c2
        c0, c1, c2, c3 = (b >> _HALF) ^ c1 ^ k0, b & _LOW, (a >> _HALF) ^ c3 ^ k1, a & _LOW
        k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
    return c0, c1, c2, c3


@inline
def random_bits(seed, position, sample):  # type: ignore[no-untyped-def]
    """64 random bits for (seed, position, sample index); key = seed, counter = (position, sample, 0, 0)."""
    zero = np.uint64(0)
    where = np.uint64(position) & _LOW
    c0, c1, _, _ = philox4x32(where, np.uint64(sample), zero, zero, seed & _LOW, seed >> _HALF)
    return (c1 << _HALF) | c0


@inline
def _row_max(values, byte, count):  # type: ignore[no-untyped-def]
    """Largest of `count` float32 at a byte offset; NaN is passed over."""
    lowest = splat_f32(_LOWEST)
    best = lowest
    for i in range(0, count, 16):
        value = select_first(count - i, load_f32x16(values, byte + i * 4), lowest)
        best = max_f32(value, best)
    return reduce_max_f32(best)


@inline
def log_sum_exp(logits, byte, vocab):  # type: ignore[no-untyped-def]
    """log of the sum of exp over `vocab` float32 at a byte offset, as float64: 32 lanes, a fixed tree."""
    best = _row_max(logits, byte, vocab)
    top, zero = splat_f32(best), splat_f32(_ZERO)
    low, high = zero, zero
    for i in range(0, vocab, 32):
        at = byte + i * 4
        low = low + select_first(vocab - i, exp_f32x16(load_f32x16(logits, at) - top), zero)
        if i + 16 < vocab:
            p = exp_f32x16(load_f32x16(logits, at + 64) - top)
            high = high + select_first(vocab - i - 16, p, zero)
    return np.float64(best) + log_f64(np.float64(reduce_add_f32(low + high)))


@inline
def _penalised_row(logits, b, vocab, penalty, history, first, last, scratch):  # type: ignore[no-untyped-def]
    """scratch[0] = the row's logits, those of ids in history[first:last] penalised once (CTRL, 4.1)."""
    lowest, zero = splat_f32(_LOWEST), splat_f32(_ZERO)
    byte = b * logits.shape[1] * 4
    for i in range(0, vocab, 16):  # NaN becomes -inf and -0 becomes +0, so that integer keys order the values
        store_f32x16(scratch, i * 4, max_f32(load_f32x16(logits, byte + i * 4), lowest) + zero)
    if penalty != _ONE:
        for i in range(first, last):
            value = logits[b, history[i]]
            scratch[0, history[i]] = value / penalty if value > _ZERO else value * penalty


@inline
def _first_of(scratch, value, vocab):  # type: ignore[no-untyped-def]
    for i in range(vocab):
        if scratch[0, i] == value:
            return i
    return 0


@inline
def _exponentiate(scratch, best, temperature, vocab, ids):  # type: ignore[no-untyped-def]
    """scratch[1] = exp((logit - max) / temperature) of every id: the candidates before any filter."""
    top, divisor = splat_f32(best), splat_f32(temperature)
    line = scratch.shape[1] * 4
    for i in range(0, vocab, 16):
        z = (load_f32x16(scratch, i * 4) - top) / divisor
        store_f32x16(scratch, line + i * 4, exp_f32x16(z))
    for i in range(vocab):
        ids[i] = i


@kernel(
    VOID(
        *(F32_2R, INT, F32_1R, I32_1R, F32_1R, F32_1R, F32_1R, I64_1R, I32_1R, U64_1R, I64_1R),
        *(F32_2, I32_1, I32_1, F32_1, INT, INT),
    )
)
def sample_rows(  # type: ignore[no-untyped-def]
    logits,
    vocab,
    temperature,
    top_k,
    top_p,
    min_p,
    penalty,
    history_start,
    history,
    seed,
    position,
    scratch,
    ids,
    token,
    logprob,
    begin,
    end,
):
    """token[b] and logprob[b] of rows begin <= b < end; a row's result depends on that row alone.

    logits: [B, Vp] float32, Vp a multiple of 16; columns from vocab <= MAX_VOCAB on are ignored.
    temperature[b]: 0 takes the largest penalised logit, ties to the lower id, and ignores the filters.
    top_k[b]: 0 or >= vocab is off; top_p[b]: >= 1 is off, else the shortest prefix of the ranking that holds
    top_p of what top-k left; min_p[b]: drops what is below min_p times the best; at least one stays.
    penalty[b]: for the ids history[history_start[b] : history_start[b + 1]], each once however often listed.
    seed[b], position[b]: key and counter of the draw, position = index of the token in its sequence.
    scratch: this thread's [2, >= Vp] float32; ids: this thread's [>= vocab] int32.
    logprob[b]: natural-log softmax of the raw logits at the token, before penalty and temperature.
    """
    bins = np.empty(BINS, np.int64)
    for b in range(begin, end):
        first, last = history_start[b], history_start[b + 1]
        _penalised_row(logits, b, vocab, penalty[b], history, first, last, scratch)
        best = _row_max(scratch, 0, vocab)
        if temperature[b] <= _ZERO:
            chosen = _first_of(scratch, best, vocab)
        else:
            _exponentiate(scratch, best, temperature[b], vocab, ids)
            count = vocab
            for by_count in (True, False):  # top-k, then top-p: one compiled copy of the search
                wanted = wanted_mass(scratch, count, by_count, top_k[b], top_p[b])
                if wanted > 0:
                    count = keep_first(scratch, ids, count, best, by_count, wanted, bins)
            if min_p[b] > _ZERO:
                count = drop_below(scratch, ids, count, 1, min(min_p[b], _ONE))
            chosen = np.int64(ids[draw(scratch, count, random_bits(seed[b], position[b], 0))])
        token[b] = chosen
        log_sum = log_sum_exp(logits, b * logits.shape[1] * 4, vocab)
        logprob[b] = np.float32(np.float64(logits[b, chosen]) - log_sum)


@kernel(VOID(F32_2R, INT, I32_1R, F32_1, INT, INT))
def score_rows(logits, vocab, targets, logprob, begin, end):  # type: ignore[no-untyped-def]
    """logprob[b] = natural-log softmax of row b's raw logits at targets[b], for begin <= b < end.

    logits: [B, Vp] float32, Vp a multiple of 16, columns from vocab on ignored; targets: 0 … vocab - 1.
    """
    for b in range(begin, end):
        log_sum = log_sum_exp(logits, b * logits.shape[1] * 4, vocab)
        logprob[b] = np.float32(np.float64(logits[b, targets[b]]) - log_sum)
