"""Cases of the kernels that sort rows by node and expert and put them together again (kernels/permute.py)."""

from __future__ import annotations

import numpy as np

from kernels import permute
from kernels.selfcheck.cases import Arrays, case, elements, one_plane
from kernels.selfcheck.draws import Draws, F


def drawn_ids(draws: Draws) -> np.ndarray:
    return np.stack([draws.permutation(12)[:4] for _ in range(7)]).astype(np.int32)


def plan(draws: Draws) -> tuple[np.ndarray, ...]:
    ids, owner = drawn_ids(draws), draws.integers(0, 3, 12).astype(np.int32)
    row_start, pair_start = np.zeros(4, np.int64), np.zeros(4, np.int64)
    rows, counts = np.zeros(21, np.int32), np.zeros(21, np.uint8)
    chosen, index = np.zeros(28, np.int32), np.zeros((7, 4), np.int32)
    permute.plan_dispatch(ids, owner, row_start, pair_start, rows, counts, chosen, index)
    return row_start, pair_start, rows, counts, chosen, index


@case
def plan_dispatch(draws: Draws) -> Arrays:
    yield from plan(draws)


@case
def gather_int8(draws: Draws) -> Arrays:
    q, scale, _ = one_plane(draws.floats(7, 128))
    row_start, _, rows, *_ = plan(draws)
    out = np.zeros(21 * 132, np.uint8)
    permute.gather_int8(q, scale, rows, row_start, out)
    yield out


@case
def plan_int8(draws: Draws) -> Arrays:
    q, scale, _ = one_plane(draws.floats(7, 128))
    ids, owner = drawn_ids(draws), draws.integers(0, 3, 12, np.int32)
    starts = np.zeros(4, np.int64), np.zeros(4, np.int64)
    rows, counts = np.zeros(21, np.int32), np.zeros(21, np.uint8)
    chosen, index, out = np.zeros(28, np.int32), np.zeros((7, 4), np.int32), np.zeros(21 * 132, np.uint8)
    permute.plan_int8(ids, owner, q, scale, *starts, rows, counts, chosen, index, out)
    yield from (*starts, rows, counts, chosen, index, out)


@case
def gather_f32(draws: Draws) -> Arrays:
    row_start, _, rows, *_ = plan(draws)
    out = np.zeros(21 * 512, np.uint8)
    permute.gather_f32(draws.floats(7, 128), rows, row_start, out)
    yield out


@case
def arrange_int8(draws: Draws) -> Arrays:
    counts, chosen = np.full(7, 4, np.uint8), drawn_ids(draws).reshape(-1)
    q, sums = draws.integers(-127, 128, (7, 192), np.int8), np.zeros((7, 3), np.int32)
    order, row_of, base = np.zeros((3, 28), np.int64)
    group_start, offsets = np.zeros(29, np.int64), np.arange(12, dtype=np.int64) * 4096
    for _ in range(2):
        found = permute.arrange_int8(counts, chosen, offsets, q, order, row_of, base, group_start, sums)
        yield from (order, row_of, base, group_start, sums, np.array([found]))
        offsets[chosen[0]] = -1


@case
def group_pairs(draws: Draws) -> Arrays:
    counts, chosen = np.full(7, 4, np.uint8), drawn_ids(draws).reshape(-1)
    order, row_of = np.zeros(28, np.int64), np.zeros(28, np.int64)
    group_expert, group_start = np.zeros(28, np.int32), np.zeros(29, np.int64)
    groups = permute.group_pairs(counts, chosen, 12, order, row_of, group_expert, group_start)
    yield from (order, row_of, group_expert, group_start, np.array([groups]))


@case
def combine(draws: Draws) -> Arrays:
    index = draws.permutation(28).reshape(7, 4).astype(np.int32)
    for bf16 in (False, True):
        for extra in (np.zeros((0, 128), F), draws.floats(7, 128)):
            x = draws.floats(7, 128)
            permute.combine(x, elements(draws, bf16, 28, 128), index, draws.floats(7, 4), extra, 0, 7)
            yield x
