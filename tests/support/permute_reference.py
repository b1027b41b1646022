"""Plain numpy twins of kernels/permute.py, same signatures: what a plan must be, written for reading."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def plan_dispatch(
    ids: Array,
    owner: Array,
    row_start: Array,
    pair_start: Array,
    rows: Array,
    counts: Array,
    experts: Array,
    index: Array,
) -> None:
    row = pair = 0
    nodes = len(row_start) - 1
    for node in range(nodes):
        row_start[node], pair_start[node] = row, pair
        for token, chosen in enumerate(ids):
            mine = [rank for rank, expert in enumerate(chosen) if owner[expert] == node]
            if not mine:
                continue
            rows[row], counts[row] = token, len(mine)
            row += 1
            for rank in mine:
                experts[pair] = chosen[rank]
                index[token, rank] = pair
                pair += 1
    row_start[nodes], pair_start[nodes] = row, pair


def gather_int8(q: Array, scales: Array, rows: Array, row_start: Array, out: Array) -> None:
    for first, last in pairwise(row_start):
        chosen = rows[first:last]
        data = q[chosen].tobytes() + scales[chosen].astype("<f4").tobytes()
        at = first * (q.shape[1] + 4)
        out[at : at + len(data)] = np.frombuffer(data, np.uint8)


def gather_f32(x: Array, rows: Array, row_start: Array, out: Array) -> None:
    data = x[rows[: row_start[-1]]].astype("<f4").tobytes()
    out[: len(data)] = np.frombuffer(data, np.uint8)
