"""Fixed inputs for every kernel. A case yields every array that its kernel writes.

Inputs come from integer draws and exact operations only, so that they are the same on every machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from kernels import alternatives, experts, fused, gate, maths, matmul, norm, quantise, sampling
from kernels.layout import BF16, F32, INT4, INT8
from kernels.selfcheck.draws import Draws, F
from kernels.selfcheck.weights import bf16_bits, matrix
from kernels.selfcheck.weights import experts as experts_of

Arrays = Iterator[np.ndarray]
Case = Callable[[Draws], Arrays]
CASES: dict[str, Case] = {}
"""By the name of the kernel, or `kernel.variant` for one that a case of its own draws for."""


def case(function: Case) -> Case:
    CASES[function.__name__] = function
    return function


def case_of(name: str) -> Callable[[Case], Case]:
    """`case` under a name that is not the function's."""

    def register(function: Case) -> Case:
        CASES[name] = function
        return function

    return register


def planes(x: np.ndarray) -> tuple[np.ndarray, ...]:
    """(hi, lo, scale, sums_hi, sums_lo) by the kernel."""
    groups = x.shape[1] // 64
    hi, lo = np.zeros(x.shape, np.int8), np.zeros(x.shape, np.int8)
    scale = np.zeros(len(x), F)
    sums = np.zeros((len(x), groups), np.int32), np.zeros((len(x), groups), np.int32)
    quantise.quantise_planes(x, hi, lo, scale, *sums, 0, len(x))
    return hi, lo, scale, *sums


def elements(draws: Draws, bf16: bool, *shape: int) -> np.ndarray:
    x = draws.floats(*shape)
    return bf16_bits(x) if bf16 else x


def one_plane(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    q, scale = np.zeros(x.shape, np.int8), np.zeros(len(x), F)
    sums = np.zeros((len(x), x.shape[1] // 64), np.int32)
    quantise.quantise_rows(x, q, scale, sums, 0, len(x))
    return q, scale, sums


@case
def quantise_rows(draws: Draws) -> Arrays:
    x = draws.floats(9, 320)
    x[4] = 0
    x[5] *= F(2.0**-110)
    yield from one_plane(x)


@case
def quantise_planes(draws: Draws) -> Arrays:
    yield from planes(draws.floats(9, 320))


@case
def group_sums(draws: Draws) -> Arrays:
    q = draws.integers(-127, 128, (5, 192)).astype(np.int8)
    sums = np.zeros((5, 3), np.int32)
    quantise.group_sums(q, sums, 0, 5)
    yield sums


@case
def round_bf16(draws: Draws) -> Arrays:
    x = draws.integers(0, 2**32, (16, 256), dtype=np.uint64).astype(np.uint32).view(F)
    out = np.zeros(x.shape, np.uint16)
    quantise.round_bf16(x, out, np.arange(len(x)), 0, len(x))
    yield out


@case
def matmul_int(draws: Draws) -> Arrays:
    for kinds in ([INT8], [INT4], [INT8, INT4, INT4]):
        for rows in (1, 2, 7):
            packed = matrix(draws, 5, 320, kinds)
            hi, lo, scale, sums_hi, sums_lo = planes(draws.floats(rows, 320))
            for count, second, sums in ((1, hi, sums_hi), (2, lo, sums_lo)):
                out = np.zeros((rows, 80), F)
                matmul.matmul_int(packed, 0, hi, second, sums_hi, sums, scale, count, out, 0, 5)
                yield out


@case
def matmul_float(draws: Draws) -> Arrays:
    for kinds in ([F32], [BF16], [BF16, F32]):
        packed, out = matrix(draws, 3, 192, kinds), np.zeros((7, 48), F)
        matmul.matmul_float(packed, 0, draws.floats(7, 192), out, 0, 3)
        yield out


@case
def embed_rows(draws: Draws) -> Arrays:
    for kind in (INT8, INT4, BF16, F32):
        packed, out = matrix(draws, 3, 192, [kind]), np.zeros((40, 192), F)
        matmul.embed_rows(packed, 0, 192, np.arange(40, dtype=np.int32), out)
        yield out


@case
def add_rows(draws: Draws) -> Arrays:
    x, y = draws.floats(5, 128), draws.floats(5, 128)
    matmul.add_rows(x, y, 0, 5)
    yield x


NOT_ROUNDED = np.zeros((0, 0), np.uint16)
GROUPS = np.array([0, 1, 6, 9], np.int64)
ROW_OF = np.array([2, 0, 1, 2, 3, 4, 0, 1, 3], np.int64)
ORDER = np.array([8, 1, 0, 3, 2, 5, 7, 4, 6], np.int64)


@case
def gate_up_int(draws: Draws) -> Arrays:
    for kinds in ([INT8], [INT4], [INT8, INT4, INT4]):
        weights = experts_of(draws, 3, 256, 128, kinds)
        q, scale, sums = one_plane(draws.floats(5, 256))
        h = np.zeros((9, 128), F)
        experts.gate_up_int(weights.data, weights.base, GROUPS, ROW_OF, q, sums, scale, 8, h, 0, 24)
        yield h


@case
def down_int(draws: Draws) -> Arrays:
    for kinds in ([INT8], [INT4], [INT8, INT4, INT4]):
        weights = experts_of(draws, 3, 256, 128, kinds)
        hi, lo, scale, *sums = planes(draws.floats(9, 128))
        out, offset = np.zeros((9, 256), F), weights.down_offset
        experts.down_int(weights.data, weights.base, offset, GROUPS, hi, lo, *sums, scale, out, ORDER, 0, 48)
        yield out


@case
def ffn_int(draws: Draws) -> Arrays:
    for kinds in ([INT8], [INT4], [INT8, INT4, INT4]):
        weights, out = experts_of(draws, 3, 256, 128, kinds), np.zeros((9, 256), F)
        q, scale, sums = one_plane(draws.floats(5, 256))
        blobs, acts = (weights.data, weights.base, weights.down_offset), (q, sums, scale)
        hi, lo, inner_scale, sums_hi, sums_lo = planes(np.zeros((9, 128), F))
        inner = (np.zeros((9, 128), F), hi, lo, sums_hi, sums_lo, inner_scale)
        experts.ffn_int(*blobs, GROUPS, ROW_OF, *acts, *inner, out, ORDER, NOT_ROUNDED, 0, 3)
        yield out


@case
def gate_up_float(draws: Draws) -> Arrays:
    weights, h = experts_of(draws, 3, 128, 64, [BF16, F32, F32]), np.zeros((9, 64), F)
    x = draws.floats(5, 128)
    experts.gate_up_float(weights.data, weights.base, GROUPS, ROW_OF, x, 4, h, 0, 12)
    yield h


@case
def down_float(draws: Draws) -> Arrays:
    weights, out = experts_of(draws, 3, 128, 64, [F32, BF16]), np.zeros((9, 128), F)
    offset, h = weights.down_offset, draws.floats(9, 64)
    experts.down_float(weights.data, weights.base, offset, GROUPS, h, out, ORDER, 0, 24)
    yield out


@case
def rms_norm(draws: Draws) -> Arrays:
    x, out, finite = draws.floats(6, 320), np.zeros((6, 320), F), np.zeros(6, np.uint8)
    x[4, 7] = np.inf
    x[5] = 0
    norm.rms_norm(x, draws.floats(320), F(1e-6), 300, out, finite, 0, 6)
    yield from (out, finite)


@case
def gate_logits(draws: Draws) -> Arrays:
    out = np.zeros((7, 48), F)
    gate.gate_logits(draws.floats(7, 192), draws.floats(3, 192, 16), out, 0, 7)
    yield out


@case
def gate_topk(draws: Draws) -> Arrays:
    for renormalise in (0, 1):
        logits = draws.floats(9, 48)
        logits[3] = 1
        logits[4, 5:9] = 30
        ids, weights = np.zeros((9, 6), np.int32), np.zeros((9, 6), F)
        gate.gate_topk(logits, 41, 6, renormalise, ids, weights, 0, 9)
        yield from (ids, weights)


@case
def sigmoid_gate(draws: Draws) -> Arrays:
    y = draws.floats(5, 192)
    gate.sigmoid_gate(draws.floats(5, 192) / F(16), draws.floats(192), y, 0, 5)
    yield y


def normed(draws: Draws) -> tuple[Any, ...]:
    """The arguments that norm_rows and gate_rows begin with."""
    x, out = draws.floats(6, 320), np.zeros((6, 320), F)
    x[4, 7] = np.inf
    results = (np.zeros(6, np.uint8), np.zeros((6, 320), np.int8), np.zeros(6, F), np.zeros((6, 5), np.int32))
    return x, draws.floats(320), F(1e-6), 300, out, *results


@case
def norm_rows(draws: Draws) -> Arrays:
    arguments = normed(draws)
    fused.norm_rows(*arguments, 0, 6)
    yield from arguments[4:]


@case
def gate_rows(draws: Draws) -> Arrays:
    arguments, weights = normed(draws), draws.floats(3, 320, 16) / F(64)
    found = (np.zeros((6, 48), F), np.zeros((6, 5), np.int32), np.zeros((6, 5), F))
    fused.gate_rows(*arguments, weights, 41, 5, 1, *found, 0, 6)
    yield from (*arguments[4:], *found)


@case
def sample_rows(draws: Draws) -> Arrays:
    rows, vocab = 12, 1000
    logits, scratch = draws.floats(rows, 1008), np.zeros((2, 1008), F)
    temperature = np.resize(np.array([0, 0.7, 1, 1.3], F), rows)
    top_k = np.resize(np.array([0, 40, 5], np.int32), rows)
    top_p = np.resize(np.array([1, 0.9, 0.5, 1, 0.95], F), rows)
    min_p = np.resize(np.array([0, 0, 0.05], F), rows)
    penalty = np.resize(np.array([1, 1.1], F), rows)
    history_start, history = np.arange(rows + 1) * 5, draws.integers(0, vocab, 5 * rows).astype(np.int32)
    seed, position = draws.integers(0, 2**63, rows, dtype=np.uint64), np.arange(rows) * 7
    ids, token, logprob = np.zeros(vocab, np.int32), np.zeros(rows, np.int32), np.zeros(rows, F)
    options = (temperature, top_k, top_p, min_p, penalty, history_start, history, seed, position)
    sampling.sample_rows(logits, vocab, *options, scratch, ids, token, logprob, 0, rows)
    yield from (token, logprob)


@case
def score_rows(draws: Draws) -> Arrays:
    logits, logprob = draws.floats(12, 1008), np.zeros(12, F)
    sampling.score_rows(logits, 1000, draws.integers(0, 1000, 12).astype(np.int32), logprob, 0, 12)
    yield logprob


@case
def top_rows(draws: Draws) -> Arrays:
    logits, rows = draws.floats(12, 1008), np.array([3, 0, 11, 7, 7])
    logits[7] = np.round(logits[7])  # ties
    ids, logprobs = np.zeros((5, 20), np.int32), np.zeros((5, 20), F)
    alternatives.top_rows(logits, 1000, rows, ids, logprobs, 0, 5)
    yield from (ids, logprobs)


@case
def keeps_denormals(draws: Draws) -> Arrays:
    yield np.array([maths.keeps_denormals(F(2.0**-126))])
