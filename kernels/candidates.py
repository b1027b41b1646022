"""Candidates for the next token: exact filters and the exact draw.

A candidate is column i of scratch [2, >= count] float32, its logit in row 0 and p = exp((logit - max) /
temperature) in row 1, and ids[i], its token; columns are in id order. Candidates rank by logit descending,
id ascending; the filters keep a prefix of that ranking, top-k exactly k of them.

Sums that decide a token are exact: a candidate weighs floor(2^42 · p), an integer, so neither the cut of
top-p nor the draw depends on an order of addition. A token less likely than 2^-42 times the best one is
never drawn.
"""

from __future__ import annotations

import numpy as np

from kernels.jit import inline
from kernels.simd.elements import multiply_high

BINS = 2048
"""Histogram of a radix step: eleven bits of a 32-bit key."""

_UNIT = np.float64(1 << 42)
_CHUNK = 1024
_ZERO, _ONE = np.float32(0.0), np.float32(1.0)


@inline
def _weight(p):  # type: ignore[no-untyped-def]
    return np.int64(np.float64(p) * _UNIT)


@inline
def _key(value):  # type: ignore[no-untyped-def]
    """Integer in 0 … 2^32 - 1 that orders float32 values without NaN and -0."""
    bits = np.int64(np.float32(value).view(np.int32))
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)) + 0x80000000


@inline
def _mass_from(scratch, count, bound, by_count):  # type: ignore[no-untyped-def]
    """Weight (or number) of the candidates with logits >= bound."""
    total = np.int64(0)
    if by_count:
        for i in range(count):
            total += np.int64(scratch[0, i] >= bound)
    else:
        for i in range(count):
            total += _weight(scratch[1, i]) if scratch[0, i] >= bound else np.int64(0)
    return total


@inline
def drop_below(scratch, ids, count, row, bound):  # type: ignore[no-untyped-def]
    """Keep the candidates with scratch[row] >= bound, in id order; returns how many."""
    kept = 0
    for i in range(count):
        if scratch[row, i] >= bound:
            ids[kept] = ids[i]
            scratch[0, kept], scratch[1, kept] = scratch[0, i], scratch[1, i]
            kept += 1
    return kept


@inline
def _narrow(scratch, ids, count, best, by_count, wanted):  # type: ignore[no-untyped-def]
    """Drop candidates that surely rank below the cut, so that the exact search sees few: a speed-up only."""
    distance = _ONE
    while distance < np.float32(64.0):
        if _mass_from(scratch, count, best - distance, by_count) >= wanted:
            return drop_below(scratch, ids, count, 0, best - distance)
        distance += distance
    return count


@inline
def _digit_at(scratch, count, by_count, above, shift, bins, wanted):  # type: ignore[no-untyped-def]
    """One step of a radix select: the cut's digit at `shift` among the keys whose upper digits are `above`.

    Returns it and what is still wanted of the keys that share it.
    """
    for digit in range(BINS):
        bins[digit] = 0
    upper = shift + 11
    for i in range(count):
        key = _key(scratch[0, i])
        if key >> upper == above:
            bins[(key >> shift) & (BINS - 1)] += np.int64(1) if by_count else _weight(scratch[1, i])
    digit = BINS - 1
    while digit > 0 and bins[digit] < wanted:
        wanted -= bins[digit]
        digit -= 1
    return digit, wanted


@inline
def keep_first(scratch, ids, count, best, by_count, wanted, bins):  # type: ignore[no-untyped-def]
    """Keep the shortest prefix, by logit descending then id ascending, that weighs at least `wanted` >= 1.

    With by_count every candidate weighs 1: top-k. Returns how many are kept, still in id order.
    """
    count = _narrow(scratch, ids, count, best, by_count, wanted)
    cut = np.int64(0)
    for shift in (22, 11, 0):
        digit, wanted = _digit_at(scratch, count, by_count, cut, shift, bins, wanted)
        cut = (cut << 11) | digit
    kept = 0
    for i in range(count):
        key = _key(scratch[0, i])
        if key < cut or (key == cut and wanted <= 0):
            continue
        if key == cut:
            wanted -= np.int64(1) if by_count else _weight(scratch[1, i])
        ids[kept] = ids[i]
        scratch[0, kept], scratch[1, kept] = scratch[0, i], scratch[1, i]
        kept += 1
    return kept


@inline
def _weight_sum(scratch, begin, end):  # type: ignore[no-untyped-def]
    total = np.int64(0)
    for i in range(begin, end):
        total += _weight(scratch[1, i])
    return total


@inline
def wanted_mass(scratch, count, by_count, top_k, top_p):  # type: ignore[no-untyped-def]
    """What the kept prefix must weigh at least, 0 for a filter that is off."""
    if by_count:
        return np.int64(top_k) if top_k < count else np.int64(0)
    if top_p >= _ONE:
        return np.int64(0)
    share = np.float64(max(top_p, _ZERO)) * np.float64(_weight_sum(scratch, 0, count))
    return max(np.int64(np.ceil(share)), np.int64(1))


@inline
def draw(scratch, count, bits):  # type: ignore[no-untyped-def]
    """Candidate whose span of the summed weights holds floor(bits / 2^64 · sum)."""
    total = _weight_sum(scratch, 0, count)
    left = np.int64(multiply_high(bits, np.uint64(total)))
    start = 0
    while start + _CHUNK < count:
        chunk = _weight_sum(scratch, start, start + _CHUNK)
        if left < chunk:
            break
        left -= chunk
        start += _CHUNK
    for i in range(start, count):
        left -= _weight(scratch[1, i])
        if left < 0:
            return i
    return 0
