"""Fixed inputs for every kernel, and digests of what it writes; run as a script it prints them as JSON.

It runs in a process of its own for every instruction set (numba chooses its CPU at start); the digests must
agree. Inputs come from integer draws and exact operations only, so that they agree by themselves.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator

import numpy as np
from numeric.weights import BF16, F32, INT4, INT8, bf16_bits, random_experts, random_matrix

from kernels import (
    attention,
    experts,
    gate,
    jit,
    maths,
    matmul,
    norm,
    permute,
    quantise,
    rope,
    sampling,
    warm,
)

F = np.float32
Arrays = Iterator[np.ndarray]
CASES: dict[str, Callable[[np.random.Generator], Arrays]] = {}


def case(function: Callable[[np.random.Generator], Arrays]) -> Callable[[np.random.Generator], Arrays]:
    CASES[function.__name__] = function
    return function


def uniform(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """float32 in -4..4 with a spike, a denormal, zeros of both signs; no library function involved."""
    x = (rng.integers(-(2**20), 2**20, shape) / F(2**18)).astype(F)
    flat = x.reshape(-1)
    flat[:: max(1, flat.size // 7)] *= F(40)
    flat[3::97] = F(1e-41)
    flat[5::101] = 0
    flat[6::103] = -0.0
    return x


def planes(x: np.ndarray) -> tuple[np.ndarray, ...]:
    """(hi, lo, scale, sums_hi, sums_lo) by the kernel."""
    groups = x.shape[1] // 64
    hi, lo = np.zeros(x.shape, np.int8), np.zeros(x.shape, np.int8)
    scale = np.zeros(len(x), F)
    sums = np.zeros((len(x), groups), np.int32), np.zeros((len(x), groups), np.int32)
    quantise.quantise_planes(x, hi, lo, scale, *sums, 0, len(x))
    return hi, lo, scale, *sums


def one_plane(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    q, scale = np.zeros(x.shape, np.int8), np.zeros(len(x), F)
    sums = np.zeros((len(x), x.shape[1] // 64), np.int32)
    quantise.quantise_rows(x, q, scale, sums, 0, len(x))
    return q, scale, sums


@case
def quantise_rows(rng: np.random.Generator) -> Arrays:
    x = uniform(rng, 9, 320)
    x[4] = 0
    x[5] *= F(2.0**-110)
    yield from one_plane(x)


@case
def quantise_planes(rng: np.random.Generator) -> Arrays:
    yield from planes(uniform(rng, 9, 320))


@case
def group_sums(rng: np.random.Generator) -> Arrays:
    q = rng.integers(-127, 128, (5, 192)).astype(np.int8)
    sums = np.zeros((5, 3), np.int32)
    quantise.group_sums(q, sums, 0, 5)
    yield sums


@case
def round_bf16(rng: np.random.Generator) -> Arrays:
    x = rng.integers(0, 2**32, (16, 256), dtype=np.uint64).astype(np.uint32).view(F)
    out = np.zeros(x.shape, np.uint16)
    quantise.round_bf16(x, out, 0, len(x))
    yield out


@case
def matmul_int(rng: np.random.Generator) -> Arrays:
    for kinds in ([INT8], [INT4], [INT8, INT4, INT4]):
        for rows in (1, 2, 7, 50):
            matrix = random_matrix(rng, 75, 320, kinds)
            hi, lo, scale, sums_hi, sums_lo = planes(uniform(rng, rows, 320))
            for count, second, sums in ((1, hi, sums_hi), (2, lo, sums_lo)):
                out = np.zeros((rows, 80), F)
                matmul.matmul_int(matrix.blob, 0, hi, second, sums_hi, sums, scale, count, out, 0, 5)
                yield out


@case
def matmul_float(rng: np.random.Generator) -> Arrays:
    for kinds in ([F32], [BF16], [BF16, F32]):
        matrix, out = random_matrix(rng, 40, 192, kinds), np.zeros((7, 48), F)
        matmul.matmul_float(matrix.blob, 0, uniform(rng, 7, 192), out, 0, 3)
        yield out


@case
def embed_rows(rng: np.random.Generator) -> Arrays:
    for kind in (INT8, INT4, BF16, F32):
        matrix, out = random_matrix(rng, 40, 192, [kind]), np.zeros((40, 192), F)
        matmul.embed_rows(matrix.blob, 0, 192, np.arange(40, dtype=np.int32), out)
        yield out


@case
def add_rows(rng: np.random.Generator) -> Arrays:
    x, y = uniform(rng, 5, 128), uniform(rng, 5, 128)
    matmul.add_rows(x, y, 0, 5)
    yield x


GROUPS = np.array([0, 1, 6, 9], np.int64)
ROW_OF = np.array([2, 0, 1, 2, 3, 4, 0, 1, 3], np.int64)
MANY = np.array([0, 17, 18, 60], np.int64)
MANY_ROW_OF = (np.arange(60, dtype=np.int64) * 7) % 5
ORDER = np.array([8, 1, 0, 3, 2, 5, 7, 4, 6], np.int64)


@case
def gate_up_int(rng: np.random.Generator) -> Arrays:
    for kinds in ([INT8], [INT4], [INT8, INT4, INT4]):
        weights = random_experts(rng, 3, 256, 128, kinds)
        q, scale, sums = one_plane(uniform(rng, 5, 256))
        h = np.zeros((9, 128), F)
        experts.gate_up_int(weights.blob, weights.base, GROUPS, ROW_OF, q, sums, scale, 8, h, 0, 24)
        yield h
        h = np.zeros((60, 128), F)
        experts.gate_up_int(weights.blob, weights.base, MANY, MANY_ROW_OF, q, sums, scale, 8, h, 0, 24)
        yield h


@case
def down_int(rng: np.random.Generator) -> Arrays:
    for kinds in ([INT8], [INT4], [INT8, INT4, INT4]):
        weights = random_experts(rng, 3, 256, 128, kinds)
        hi, lo, scale, *sums = planes(uniform(rng, 9, 128))
        out, offset = np.zeros((9, 256), F), weights.down_offset
        experts.down_int(weights.blob, weights.base, offset, GROUPS, hi, lo, *sums, scale, out, ORDER, 0, 48)
        yield out
        hi, lo, scale, *sums = planes(uniform(rng, 60, 128))
        out, order = np.zeros((60, 256), F), np.arange(60, dtype=np.int64)[::-1].copy()
        experts.down_int(weights.blob, weights.base, offset, MANY, hi, lo, *sums, scale, out, order, 0, 48)
        yield out


@case
def gate_up_float(rng: np.random.Generator) -> Arrays:
    weights, h = random_experts(rng, 3, 128, 64, [BF16, F32, F32]), np.zeros((9, 64), F)
    x = uniform(rng, 5, 128)
    experts.gate_up_float(weights.blob, weights.base, GROUPS, ROW_OF, x, 4, h, 0, 12)
    yield h


@case
def down_float(rng: np.random.Generator) -> Arrays:
    weights, out = random_experts(rng, 3, 128, 64, [F32, BF16]), np.zeros((9, 128), F)
    offset, h = weights.down_offset, uniform(rng, 9, 64)
    experts.down_float(weights.blob, weights.base, offset, GROUPS, h, out, ORDER, 0, 24)
    yield out


@case
def rms_norm(rng: np.random.Generator) -> Arrays:
    x, out, finite = uniform(rng, 6, 320), np.zeros((6, 320), F), np.zeros(6, np.uint8)
    x[4, 7] = np.inf
    x[5] = 0
    norm.rms_norm(x, uniform(rng, 320), F(1e-6), 300, out, finite, 0, 6)
    yield from (out, finite)


@case
def gate_logits(rng: np.random.Generator) -> Arrays:
    out = np.zeros((7, 48), F)
    gate.gate_logits(uniform(rng, 7, 192), uniform(rng, 3, 192, 16), out, 0, 7)
    yield out


@case
def gate_topk(rng: np.random.Generator) -> Arrays:
    for renormalise in (0, 1):
        logits = uniform(rng, 9, 48)
        logits[3] = 1
        logits[4, 5:9] = 30
        ids, weights = np.zeros((9, 6), np.int32), np.zeros((9, 6), F)
        gate.gate_topk(logits, 41, 6, renormalise, ids, weights, 0, 9)
        yield from (ids, weights)


@case
def sigmoid_gate(rng: np.random.Generator) -> Arrays:
    y = uniform(rng, 5, 192)
    gate.sigmoid_gate(uniform(rng, 5, 192) / F(16), uniform(rng, 192), y, 0, 5)
    yield y


def pages(rng: np.random.Generator, bf16: bool, *shape: int) -> np.ndarray:
    x = uniform(rng, *shape)
    return bf16_bits(x) if bf16 else x


@case
def prepare_qkv(rng: np.random.Generator) -> Arrays:
    heads, kv_heads, width, padded, tokens = 4, 2, 40, 48, 6
    angles = uniform(rng, 2, 100, width // 2) / F(160)
    none = np.zeros(0, F)
    norms = {
        rope.QK_NONE: (none, none),
        rope.QK_HEAD: (uniform(rng, padded), uniform(rng, padded)),
        rope.QK_FULL: (uniform(rng, heads * padded), uniform(rng, kv_heads * padded)),
    }
    for mode, (q_norm, k_norm) in norms.items():
        for bf16 in (False, True):
            row = (heads + 2 * kv_heads) * padded
            qkv, bias = uniform(rng, tokens, row), none if mode else uniform(rng, row)
            qkv[3, 5] = np.nan
            k_pages = pages(rng, bf16, 3, kv_heads, 2, padded, 16)
            v_pages = pages(rng, bf16, 3, kv_heads, 32, padded)
            q_out, finite = np.zeros((tokens, heads, padded), F), np.zeros(tokens, np.uint8)
            positions, slots = np.arange(60, 66), np.array([0, 17, 31, 32, 64, 95])
            where = (angles[0], angles[1], positions, slots)
            options = (q_norm, k_norm, mode, F(3 if mode == 2 else 0), F(1e-6), width)
            rope.prepare_qkv(qkv, bias, *options, *where, k_pages, v_pages, q_out, finite, 0, tokens)
            yield from (k_pages, v_pages, q_out, finite)


@case
def attend(rng: np.random.Generator) -> Arrays:
    heads, kv_heads, padded, size = 4, 2, 80, 32
    for bf16 in (False, True):
        k_pages = pages(rng, bf16, 9, kv_heads, size // 16, padded, 16)
        v_pages = pages(rng, bf16, 9, kv_heads, size, padded)
        table = np.array([[3, 1, 4, 0, 5], [2, 6, 8, 7, 5]], np.int32)
        sequence = np.array([0, 0, 1, 1, 1], np.int64)
        positions = np.array([0, 63, 64, 65, 130], np.int64)
        q = uniform(rng, 5, heads, padded)
        for window in (0, 50):
            out, scores = np.zeros((5, 384), F), np.zeros((heads // kv_heads, 192), F)
            places = (table, sequence, positions, window, F(0.1))
            attention.attend(q, k_pages, v_pages, *places, out, scores, 0, 5 * kv_heads)
            yield out


def drawn_ids(rng: np.random.Generator) -> np.ndarray:
    return np.stack([rng.permutation(12)[:4] for _ in range(7)]).astype(np.int32)


def plan(rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    ids, owner = drawn_ids(rng), rng.integers(0, 3, 12).astype(np.int32)
    row_start, pair_start = np.zeros(4, np.int64), np.zeros(4, np.int64)
    rows, counts = np.zeros(21, np.int32), np.zeros(21, np.uint8)
    chosen, index = np.zeros(28, np.int32), np.zeros((7, 4), np.int32)
    permute.plan_dispatch(ids, owner, row_start, pair_start, rows, counts, chosen, index)
    return row_start, pair_start, rows, counts, chosen, index


@case
def plan_dispatch(rng: np.random.Generator) -> Arrays:
    yield from plan(rng)


@case
def gather_int8(rng: np.random.Generator) -> Arrays:
    q, scale, _ = one_plane(uniform(rng, 7, 128))
    row_start, _, rows, *_ = plan(rng)
    out = np.zeros(21 * 132, np.uint8)
    permute.gather_int8(q, scale, rows, row_start, out)
    yield out


@case
def gather_f32(rng: np.random.Generator) -> Arrays:
    row_start, _, rows, *_ = plan(rng)
    out = np.zeros(21 * 512, np.uint8)
    permute.gather_f32(uniform(rng, 7, 128), rows, row_start, out)
    yield out


@case
def group_pairs(rng: np.random.Generator) -> Arrays:
    counts, chosen = np.full(7, 4, np.uint8), drawn_ids(rng).reshape(-1)
    order, row_of = np.zeros(28, np.int64), np.zeros(28, np.int64)
    group_expert, group_start = np.zeros(28, np.int32), np.zeros(29, np.int64)
    groups = permute.group_pairs(counts, chosen, 12, order, row_of, group_expert, group_start)
    yield from (order, row_of, group_expert, group_start, np.array([groups]))


@case
def combine(rng: np.random.Generator) -> Arrays:
    index = rng.permutation(28).reshape(7, 4).astype(np.int32)
    for bf16 in (False, True):
        for extra in (np.zeros((0, 128), F), uniform(rng, 7, 128)):
            x = uniform(rng, 7, 128)
            permute.combine(x, pages(rng, bf16, 28, 128), index, uniform(rng, 7, 4), extra, 0, 7)
            yield x


@case
def sample_rows(rng: np.random.Generator) -> Arrays:
    rows, vocab = 12, 1000
    logits, scratch = uniform(rng, rows, 1008), np.zeros((2, 1008), F)
    temperature = np.resize(np.array([0, 0.7, 1, 1.3], F), rows)
    top_k = np.resize(np.array([0, 40, 5], np.int32), rows)
    top_p = np.resize(np.array([1, 0.9, 0.5, 1, 0.95], F), rows)
    min_p = np.resize(np.array([0, 0, 0.05], F), rows)
    penalty = np.resize(np.array([1, 1.1], F), rows)
    history_start, history = np.arange(rows + 1) * 5, rng.integers(0, vocab, 5 * rows).astype(np.int32)
    seed, position = rng.integers(0, 2**63, rows, dtype=np.uint64), np.arange(rows) * 7
    ids, token, logprob = np.zeros(vocab, np.int32), np.zeros(rows, np.int32), np.zeros(rows, F)
    options = (temperature, top_k, top_p, min_p, penalty, history_start, history, seed, position)
    sampling.sample_rows(logits, vocab, *options, scratch, ids, token, logprob, 0, rows)
    yield from (token, logprob)


@case
def score_rows(rng: np.random.Generator) -> Arrays:
    logits, logprob = uniform(rng, 12, 1008), np.zeros(12, F)
    sampling.score_rows(logits, 1000, rng.integers(0, 1000, 12).astype(np.int32), logprob, 0, 12)
    yield logprob


@case
def keeps_denormals(rng: np.random.Generator) -> Arrays:
    yield np.array([maths.keeps_denormals(F(2.0**-126))])


def digests() -> dict[str, str]:
    """Kernel name -> SHA-256 of everything its case writes."""
    result = {}
    for name, run in CASES.items():
        digest = hashlib.sha256()
        for array in run(np.random.default_rng(7)):
            digest.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
        result[name] = digest.hexdigest()
    return result


def main() -> None:
    warm.compile_all()
    json.dump({"isa": jit.ISA, "digests": digests()}, sys.stdout)


if __name__ == "__main__":
    main()
