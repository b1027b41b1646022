"""Attention over the KV pages, and the kernels whose work is too small for a limit: microseconds a call."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from cluster.cli.kernelbench.cases import BANDWIDTH, TIME, Case, rows_label
from cluster.cli.kernelbench.shapes import OLMOE, OLMOE_VOCABULARY
from cluster.compute.threads import Workers
from kernels import attention, gate, layout, norm, permute, quantise, sampling

HEADS, HEAD_WIDTH, PAGE_TOKENS = 16, 128, 64
EXPERTS = 64
CALLS = 200
"""Rows timed together: a call with one is shorter than the clock is exact."""

F32 = np.float32


def attention_case(workers: Workers, context: int, kv_bytes: int) -> Case:
    """One token of each of as many sequences of `context` tokens as fill `kv_bytes`, OLMoE's heads, bf16."""
    a_token = 2 * HEADS * HEAD_WIDTH * 2
    sequences = max(1, kv_bytes // (a_token * context))
    pages = sequences * context // PAGE_TOKENS
    rng = np.random.default_rng(0)
    keys = np.full((pages, HEADS, PAGE_TOKENS // 16, HEAD_WIDTH, 16), 0x3F80, np.uint16)
    values = np.full((pages, HEADS, PAGE_TOKENS, HEAD_WIDTH), 0x3F80, np.uint16)
    table = rng.permutation(pages).reshape(sequences, -1).astype(np.int32)
    q = rng.standard_normal((sequences, HEADS, HEAD_WIDTH)).astype(F32)
    out = np.zeros((sequences, HEADS * HEAD_WIDTH), F32)
    scores = [np.zeros((1, layout.pad(context, attention.BLOCK)), F32) for _ in range(workers.threads)]
    sequence, positions = np.arange(sequences), np.full(sequences, context - 1)
    where = (q, keys, values, None, None, table, sequence, positions, 0, F32(HEAD_WIDTH**-0.5), out)

    def run() -> None:
        workers.run_each(attention.attend, sequences * HEADS, lambda thread: (*where, scores[thread]))

    id = f"attention_decode.{BANDWIDTH}.threads{workers.threads}.context{context}"
    return Case(id, "attention", f"{context} tokens", BANDWIDTH, run, sequences * context * a_token)


def small_cases() -> Iterator[Case]:
    """One decode step's worth of each, OLMoE's sizes, one row and thirty-two, one thread."""
    for rows in (1, 32):
        for name, call in _calls(np.random.default_rng(0), rows):
            calls = CALLS // rows
            run = _many(call, calls)
            yield Case(f"{name}.{TIME}.rows{rows}", name, rows_label(rows), TIME, run, calls=calls)


def _many(call: Callable[[], None], calls: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(calls):
            call()

    return run


def _calls(rng: np.random.Generator, rows: int) -> Iterator[tuple[str, Callable[[], None]]]:
    width, top_k = OLMOE.hidden, OLMOE.top_k
    pairs = rows * top_k
    x, out = rng.standard_normal((rows, width)).astype(F32), np.zeros((rows, width), F32)
    finite, ones = np.zeros(rows, np.uint8), np.ones(width, F32)
    yield "rms_norm", lambda: norm.rms_norm(x, ones, F32(1e-5), width, out, finite, 0, rows)
    q, scale = np.zeros((rows, width), np.int8), np.zeros(rows, F32)
    sums = np.zeros((rows, width // layout.GROUP), np.int32)
    yield "quantise_rows", lambda: quantise.quantise_rows(x, q, scale, sums, 0, rows)
    weights = rng.standard_normal((EXPERTS // 16, width, 16)).astype(F32)
    logits = np.zeros((rows, EXPERTS), F32)
    yield "gate_logits", lambda: gate.gate_logits(x, weights, logits, 0, rows)
    ids, chosen = np.zeros((rows, top_k), np.int32), np.zeros((rows, top_k), F32)
    yield "gate_topk", lambda: gate.gate_topk(logits, EXPERTS, top_k, 0, ids, chosen, 0, rows)
    counts = np.full(rows, top_k, np.uint8)
    experts = np.stack([rng.permutation(EXPERTS)[:top_k] for _ in range(rows)]).astype(np.int32).ravel()
    order, row_of = np.zeros(pairs, np.int64), np.zeros(pairs, np.int64)
    group, start = np.zeros(pairs, np.int32), np.zeros(pairs + 1, np.int64)
    yield (
        "group_pairs",
        lambda: permute.group_pairs(counts, experts, EXPERTS, order, row_of, group, start),
    )
    results = np.full((pairs, width), 0x3F80, np.uint16)
    index, none = np.arange(pairs, dtype=np.int32).reshape(rows, top_k), np.zeros((0, width), F32)
    yield "combine", lambda: permute.combine(x, results, index, chosen, none, 0, rows)
    for name, temperature in (("sample_greedy", 0), ("sample_top_p", 1)):
        yield name, _sampler(rng, rows, F32(temperature))


def _sampler(rng: np.random.Generator, rows: int, temperature: np.float32) -> Callable[[], None]:
    vocab = OLMOE_VOCABULARY
    logits = (rng.standard_normal((rows, vocab)) * 3).astype(F32)
    scratch, ids = np.zeros((2, vocab), F32), np.zeros(vocab, np.int32)
    token, logprob = np.zeros(rows, np.int32), np.zeros(rows, F32)
    filters = (np.zeros(rows, np.int32), np.full(rows, 0.9, F32), np.zeros(rows, F32), np.ones(rows, F32))
    history = (np.zeros(rows + 1, np.int64), np.zeros(0, np.int32))
    draws = (np.arange(rows, dtype=np.uint64), np.arange(rows))
    options = (np.full(rows, temperature, F32), *filters, *history, *draws)
    return lambda: sampling.sample_rows(logits, vocab, *options, scratch, ids, token, logprob, 0, rows)
