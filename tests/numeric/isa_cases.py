"""Digests of what every instruction set must give the same bits for; run as a script it prints them.

It runs in a process of its own for every instruction set (numba chooses its CPU at start). Beside the fixed
inputs of kernels.selfcheck, a case for every kernel: whole computations at drawn shapes, with the special
values of NUMERICS section 10. Inputs come from integer draws and exact operations only.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from cluster.compute.experts import ExpertCompute
from cluster.compute.threads import Workers
from kernels import attention, gate, jit, layout, matmul, norm, quantise, sampling, selfcheck, warm
from kernels.layout import BF16, F32, INT4, INT8
from kernels.selfcheck.cases import Arrays, Case
from kernels.selfcheck.cases import planes as planes_of
from kernels.selfcheck.draws import Draws
from kernels.selfcheck.weights import Experts, bf16_bits, matrix
from kernels.selfcheck.weights import experts as packed_experts

F = np.float32
WHOLE: dict[str, Case] = {}


def whole(function: Case) -> Case:
    WHOLE["whole_" + function.__name__] = function
    return function


def one(draws: Draws, low: int, high: int) -> int:
    """low <= integer < high."""
    return int(draws.integers(low, high, 1)[0])


def special_rows(draws: Draws, rows: int, width: int) -> np.ndarray:
    """Rows of ordinary values, among them: zeros, denormals, the largest magnitude everywhere, one spike."""
    x = draws.floats(rows, width)
    for row in range(0, rows, 6):
        kinds = np.zeros((5, width), F)
        kinds[1] = F(1e-42)
        kinds[2] = np.where(draws.integers(0, 2, width) == 1, F(8), F(-8))
        kinds[3], kinds[3, one(draws, 0, width)] = F(2.0**-20), F(2.0**20)
        kinds[4] = F(2.0**-101)
        x[row + 1 : row + 6] = kinds[: max(0, min(5, rows - row - 1))]
    return x


@dataclass(frozen=True)
class Resident:
    """Experts that all lie in memory, as ExpertCompute wants them."""

    weights: Experts

    @property
    def base(self) -> np.ndarray:
        return self.weights.data

    @property
    def down_offset(self) -> int:
        return self.weights.down_offset

    def offsets(self, layer: int) -> np.ndarray:
        return self.weights.base

    def batches(self, layer: int, indices: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
        yield 0, len(indices), self.weights.base[indices]


def routed(draws: Draws, rows: int, experts: int, top_k: int) -> np.ndarray:
    """[rows, top_k] int32: distinct experts of each row; all rows choose expert 0 in every third draw."""
    chosen = np.stack([draws.permutation(experts)[:top_k] for _ in range(rows)])
    if one(draws, 0, 3) == 0:
        chosen[:, 0], chosen[:, 1:] = 0, np.where(chosen[:, 1:] == 0, chosen[:, :1], chosen[:, 1:])
    return chosen.astype(np.int32)


@whole
def expert_ffn(draws: Draws) -> Arrays:
    """From the rows of a dispatch to the bf16 rows of its answer."""
    workers = Workers(1)
    for kinds in ([INT8], [INT4], [INT8, INT4, INT4], [F32], [BF16, F32]):
        for rows in (1, 2, 7, 33, 70):
            hidden, width, count = 64 * one(draws, 1, 6), 64 * one(draws, 1, 5), one(draws, 2, 6)
            source = Resident(packed_experts(draws, count, hidden, width, kinds))
            compute = ExpertCompute(source, count, width, workers, round_results=kinds != [F32])
            experts = routed(draws, rows, count, 2)
            x, scale = special_rows(draws, rows, hidden), np.zeros(rows, F)
            if kinds[0] in (INT8, INT4):
                q, sums = np.zeros(x.shape, np.int8), np.zeros((rows, hidden // 64), np.int32)
                quantise.quantise_rows(x, q, scale, sums, 0, rows)
                x = q
            yield compute.run(0, np.full(rows, 2, np.uint8), experts.reshape(-1), x, scale)


def extreme_matrix(kind: int, blocks: int, width: int, pattern: tuple[int, int]) -> np.ndarray:
    """A matrix whose stored bytes repeat `pattern`, with the largest multipliers, and row scales of 1."""
    data = matrix(Draws(0), blocks, width, [kind]).copy()
    for block in data[layout.table_bytes(blocks) :].reshape(blocks, -1):
        weights = width * 16 // (2 if kind == INT4 else 1)
        block[:weights] = np.resize(np.array(pattern, np.uint8), weights)
        if kind == INT4:
            block[weights : weights + width // 4] = layout.MAX_MULTIPLIER
        block[-64:] = np.ones(16, F).view(np.uint8)
    return data


@whole
def largest_sums(draws: Draws) -> Arrays:
    """Every product at its largest magnitude, in rows of one sign and of both: nothing saturates."""
    blocks, width, rows = 3, 1024, 5
    x = np.ones((rows, width), F)
    x[1], x[2, ::2], x[3, 1::2], x[4, : width // 2] = -1, -1, -1, -1
    hi, lo, scale, *sums = planes_of(x)
    for kind in (INT8, INT4):
        for pattern in ((0x00, 0x00), (0xFF, 0xFF), (0x00, 0xFF), (0x80, 0x7F)):
            packed, out = extreme_matrix(kind, blocks, width, pattern), np.zeros((rows, 16 * blocks), F)
            for count in (1, 2):
                matmul.matmul_int(packed, 0, hi, lo, *sums, scale, count, out, 0, blocks)
                yield out


@whole
def gate_and_topk(draws: Draws) -> Arrays:
    for experts in (8, 16, 60, 64, 65, 128):
        rows, width, top_k = one(draws, 1, 12), 64 * one(draws, 1, 6), one(draws, 1, 9)
        blocks = -(-experts // 16)
        packed = draws.floats(blocks, width, 16)
        packed[..., 1] = packed[..., 4]  # two experts that always tie
        logits = np.zeros((rows, 16 * blocks), F)
        h = special_rows(draws, rows, width) / F(64)
        gate.gate_logits(h, packed, logits, 0, rows)
        yield logits
        for renormalise in (0, 1):
            ids, weights = np.zeros((rows, top_k), np.int32), np.zeros((rows, top_k), F)
            gate.gate_topk(logits.copy(), experts, top_k, renormalise, ids, weights, 0, rows)
            yield from (ids, weights)


@whole
def attention_lengths(draws: Draws) -> Arrays:
    """Sequences that end just before, at and after every tile, block and page; stale pages hold NaN."""
    lengths = np.array([1, 15, 16, 17, 63, 64, 65, 127, 128, 129, 193])
    for size in (16, 32, 64):
        for bf16 in (False, True):
            kv_heads, group, padded = one(draws, 1, 3), one(draws, 1, 4), 16 * one(draws, 1, 9)
            per_sequence = -(-int(lengths.max()) // size)
            count = per_sequence * len(lengths) + 1
            table = np.arange(count - 1, dtype=np.int32)[::-1].reshape(len(lengths), per_sequence).copy()
            keys = draws.floats(count, kv_heads, size // 16, padded, 16)
            values = draws.floats(count, kv_heads, size, padded)
            for sequence, length in enumerate(lengths):
                stale = table[sequence, -(-int(length) // size) :].copy()
                table[sequence, -(-int(length) // size) :] = count - 1
                keys[stale], values[stale] = np.nan, np.nan
            keys[-1], values[-1] = np.nan, np.nan
            if bf16:
                keys, values = bf16_bits(keys), bf16_bits(values)
            tokens, heads = len(lengths), kv_heads * group
            q, out = draws.floats(tokens, heads, padded), np.zeros((tokens, heads * padded), F)
            scores = np.zeros((group, 256), F)
            for window in (0, one(draws, 1, 100)):
                places = (table, np.arange(tokens), lengths - 1, window, F(0.125))
                attention.attend(q, keys, values, None, None, *places, out, scores, 0, tokens * kv_heads)
                yield out


@whole
def norms(draws: Draws) -> Arrays:
    for hidden in (1, 50, 64, 200, 448):
        rows, width = 13, -(-hidden // 64) * 64
        x, weight = special_rows(draws, rows, width), draws.floats(width)
        x[:, hidden:], weight[hidden:] = 0, 0
        x[9, 0], x[10, hidden - 1], x[11, 0] = np.nan, np.inf, F(3e38)
        out, finite = np.zeros((rows, width), F), np.zeros(rows, np.uint8)
        norm.rms_norm(x, weight, F(1e-5), hidden, out, finite, 0, rows)
        yield from (out, finite)


@whole
def sampled_tokens(draws: Draws) -> Arrays:
    for vocab in (2, 16, 257, 5000):
        rows, padded = 24, -(-vocab // 16) * 16
        logits = draws.floats(rows, padded)
        logits[3], logits[4, ::2] = 0, F(1)  # ties everywhere
        logits[5, 0], logits[6] = F(1e4), F(-1e-42)
        temperature = draws.integers(0, 5, rows).astype(F) / F(2)
        top_k = draws.integers(0, vocab + 2, rows).astype(np.int32)
        top_p = (draws.integers(1, 17, rows) / 16).astype(F)
        min_p = (draws.integers(0, 3, rows) / 16).astype(F)
        penalty = (1 + draws.integers(0, 3, rows) / 8).astype(F)
        start, history = np.arange(rows + 1) * 3, draws.integers(0, vocab, 3 * rows, np.int32)
        seed, position = draws.integers(0, 2**63, rows, np.uint64), draws.integers(0, 4096, rows)
        scratch, ids = np.zeros((2, padded), F), np.zeros(vocab, np.int32)
        token, logprob = np.zeros(rows, np.int32), np.zeros(rows, F)
        options = (temperature, top_k, top_p, min_p, penalty, start, history, seed, position)
        sampling.sample_rows(logits, vocab, *options, scratch, ids, token, logprob, 0, rows)
        yield from (token, logprob)
        targets = draws.integers(0, vocab, rows, np.int32)
        sampling.score_rows(logits, vocab, targets, logprob, 0, rows)
        yield logprob


def digests() -> dict[str, str]:
    """SHA-256 of everything each case writes: the fixed case of every kernel, and the whole computations."""
    return selfcheck.digests() | selfcheck.digests(WHOLE)


def main() -> None:
    warm.compile_all(apart=True)
    json.dump({"isa": jit.ISA, "digests": digests()}, sys.stdout)


if __name__ == "__main__":
    main()
