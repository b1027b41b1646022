"""Cases of the kernels between the projections: rotation, the KV cache, attention."""

from __future__ import annotations

import numpy as np

from kernels import attention, rope
from kernels.selfcheck.cases import Arrays, case, case_of, elements
from kernels.selfcheck.draws import Draws, F


@case
def prepare_qkv(draws: Draws) -> Arrays:
    heads, kv_heads, width, padded, tokens = 4, 2, 40, 48, 6
    angles = draws.floats(2, 100, width // 2) / F(160)
    none = np.zeros(0, F)
    norms = {
        rope.QK_NONE: (none, none),
        rope.QK_HEAD: (draws.floats(padded), draws.floats(padded)),
        rope.QK_FULL: (draws.floats(heads * padded), draws.floats(kv_heads * padded)),
    }
    for mode, (q_norm, k_norm) in norms.items():
        for bf16 in (False, True):
            row = (heads + 2 * kv_heads) * padded
            qkv, bias = draws.floats(tokens, row), none if mode else draws.floats(row)
            qkv[3, 5] = np.nan
            k_pages = elements(draws, bf16, 3, kv_heads, 2, padded, 16)
            v_pages = elements(draws, bf16, 3, kv_heads, 32, padded)
            q_out, finite = np.zeros((tokens, heads, padded), F), np.zeros(tokens, np.uint8)
            positions, slots = np.arange(60, 66), np.array([0, 17, 31, 32, 64, 95])
            where = (angles[0], angles[1], positions, slots)
            options = (q_norm, k_norm, mode, F(3 if mode == 2 else 0), F(1e-6), width)
            stored = (k_pages, v_pages, None, None)
            rope.prepare_qkv(qkv, bias, *options, *where, *stored, q_out, finite, 0, tokens)
            yield from (k_pages, v_pages, q_out, finite)


@case
def attend(draws: Draws) -> Arrays:
    heads, kv_heads, padded, size = 4, 2, 80, 32
    for bf16 in (False, True):
        k_pages = elements(draws, bf16, 9, kv_heads, size // 16, padded, 16)
        v_pages = elements(draws, bf16, 9, kv_heads, size, padded)
        table = np.array([[3, 1, 4, 0, 5], [2, 6, 8, 7, 5]], np.int32)
        sequence = np.array([0, 0, 1, 1, 1], np.int64)
        positions = np.array([0, 63, 64, 65, 130], np.int64)
        q = draws.floats(5, heads, padded)
        for window in (0, 50):
            out, scores = np.zeros((5, 384), F), np.zeros((heads // kv_heads, 192), F)
            places = (table, sequence, positions, window, F(0.1))
            attention.attend(q, k_pages, v_pages, None, None, *places, out, scores, 0, 5 * kv_heads)
            yield out


def int8_pages(draws: Draws, *shape: int) -> np.ndarray:
    return draws.integers(-127, 128, shape, np.int8)


def page_scales(draws: Draws, *shape: int) -> np.ndarray:
    return (draws.integers(1, 2**10, shape) / F(2**12)).astype(F)


@case_of("prepare_qkv.int8")
def prepare_qkv_int8(draws: Draws) -> Arrays:
    heads, kv_heads, width, padded, tokens = 4, 2, 40, 48, 6
    angles, none = draws.floats(2, 100, width // 2) / F(160), np.zeros(0, F)
    qkv = draws.floats(tokens, (heads + 2 * kv_heads) * padded)
    qkv[2], qkv[3, 5] = 0, np.nan
    k_pages = int8_pages(draws, 3, kv_heads, 2, padded, 16)
    v_pages = int8_pages(draws, 3, kv_heads, 32, padded)
    k_scales, v_scales = page_scales(draws, 3, kv_heads, 32), page_scales(draws, 3, kv_heads, 32)
    q_out, finite = np.zeros((tokens, heads, padded), F), np.zeros(tokens, np.uint8)
    where = (angles[0], angles[1], np.arange(60, 66), np.array([0, 17, 31, 32, 64, 95]))
    options = (none, none, none, rope.QK_NONE, F(0), F(1e-6), width)
    stored = (k_pages, v_pages, k_scales, v_scales)
    rope.prepare_qkv(qkv, *options, *where, *stored, q_out, finite, 0, tokens)
    yield from (*stored, q_out, finite)


@case_of("attend.int8")
def attend_int8(draws: Draws) -> Arrays:
    heads, kv_heads, padded, size = 4, 2, 80, 32
    k_pages = int8_pages(draws, 9, kv_heads, size // 16, padded, 16)
    v_pages = int8_pages(draws, 9, kv_heads, size, padded)
    scales = page_scales(draws, 9, kv_heads, size), page_scales(draws, 9, kv_heads, size)
    table = np.array([[3, 1, 4, 0, 5], [2, 6, 8, 7, 5]], np.int32)
    sequence, positions = np.array([0, 0, 1, 1, 1], np.int64), np.array([0, 63, 64, 65, 130], np.int64)
    q = draws.floats(5, heads, padded)
    for window in (0, 50):
        out, scores = np.zeros((5, 384), F), np.zeros((16, 192), F)
        places = (table, sequence, positions, window, F(0.1))
        attention.attend(q, k_pages, v_pages, *scales, *places, out, scores, 0, 5 * kv_heads)
        yield out
