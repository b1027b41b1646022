"""The SwiGLU network of many experts at once: one kernel call a phase, whatever the number of experts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from cluster.compute.scratch import Scratch
from cluster.compute.threads import Workers
from kernels import experts, layout, quantise
from kernels.prefill import MANY

NOT_ROUNDED = np.zeros((0, 0), np.uint16)

MOST_SIZES = 64
"""Numbers of pairs for which a scratch keeps its arrays at hand."""

FEW_ROWS = 4
"""Mean rows a group up to which reading its weights is what it costs."""


WAIT = 1.1
"""Longest over mean share of the threads up to which they take groups whole. Splitting every group by blocks
leaves nobody waiting, and costs three calls and a way through memory instead: about a tenth."""


@dataclass(frozen=True)
class Groups:
    """P pairs (row, expert) sorted by expert into G groups.

    base: [G] int64, byte offset of each group's expert blob; start: [G + 1] int64, its pairs;
    row_of: [P] int64, input row of a pair; order: [P] int64, the output row that a pair is written to.
    """

    base: np.ndarray
    start: np.ndarray
    row_of: np.ndarray
    order: np.ndarray

    def part(self, begin: int, end: int, base: np.ndarray) -> Groups:
        """Groups begin..end with their blobs at `base`; their pairs keep their numbers."""
        return Groups(base, self.start[begin : end + 1], self.row_of, self.order)


@dataclass(frozen=True)
class Activations:
    """Rows as they are sent to experts: int8 with a scale a row and sums of 64, or float32 alone.

    rows: [T, width] int8 or float32; scale: [T] float32; sums: [T, width / 64] int32.
    """

    rows: np.ndarray
    scale: np.ndarray
    sums: np.ndarray

    @property
    def floating(self) -> bool:
        return self.rows.dtype == np.float32


def received(workers: Workers, scratch: Scratch, rows: np.ndarray, scale: np.ndarray) -> Activations:
    """Activations from the wire: their sums of 64 are computed here, not sent."""
    if rows.dtype == np.float32:
        return Activations(rows, scale, scratch.take("received.sums", len(rows), 1, np.int32))
    sums = scratch.take("received.sums", len(rows), rows.shape[1] // layout.GROUP, np.int32)
    workers.run(quantise.group_sums, len(rows), rows, sums)
    return Activations(rows, scale, sums)


class FfnScratch:
    """What `run_ffn` writes on its way, for networks of one padded inner width F."""

    def __init__(self, scratch: Scratch, width: int) -> None:
        self._scratch, self._width = scratch, width
        self._inner: dict[int, Inner] = {}

    def inner(self, pairs: int) -> Inner:
        """For that many pairs. Looked up once, not array by array: few rows take less time than that."""
        found = self._inner.get(pairs)
        if found is None:
            if len(self._inner) == MOST_SIZES:
                self._inner.clear()
            found = self._inner[pairs] = Inner(*self._arrays(pairs))
        return found

    def _arrays(self, pairs: int) -> Iterator[np.ndarray]:
        take, width = self._scratch.take, self._width
        yield take("ffn.inner", pairs, width, np.float32)
        for name in ("ffn.high", "ffn.low"):
            yield take(name, pairs, width, np.int8)
        for name in ("ffn.sums_high", "ffn.sums_low"):
            yield take(name, pairs, width // layout.GROUP, np.int32)
        yield self._scratch.vector("ffn.scale", pairs, np.float32)


class Inner(NamedTuple):
    """Inner activations of P pairs: [P, F] float32, and as two int8 planes with sums of 64 and a scale."""

    values: np.ndarray
    high: np.ndarray
    low: np.ndarray
    sums_high: np.ndarray
    sums_low: np.ndarray
    scale: np.ndarray


def run_ffn(
    workers: Workers,
    scratch: FfnScratch,
    data: np.ndarray,
    down_offset: int,
    groups: Groups,
    acts: Activations,
    out: np.ndarray,
    rounded: np.ndarray = NOT_ROUNDED,
) -> None:
    """out[order[p]] = down(silu(gate(x)) * up(x)) for the rows x = acts[row_of[p]] of every group.

    data: [bytes] uint8 that holds the blobs; out: [P, Hp] float32; rounded: [P, Hp] uint16, filled with the
    bf16 bits of these rows, for which `out` is then scratch, or NOT_ROUNDED.
    Quantised blobs requantise the inner activations to two int8 planes, local to this call.
    """
    count = len(groups.base)
    if not count:
        return
    inner = scratch.inner(len(groups.order))
    if acts.floating:
        whole = 0
        _float_phases(workers, data, down_offset, groups, acts, inner.values, out)
    else:
        bounds = shares(groups.start, workers.threads)
        whole = bounds[-1]
        if whole:
            blobs, pairs = (data, groups.base, down_offset), (groups.start, groups.row_of)
            rows = (acts.rows, acts.sums, acts.scale)
            results = (*inner, out, groups.order, rounded)
            workers.run_shares(experts.ffn_int, bounds, *blobs, *pairs, *rows, *results)
        if whole < count:
            rest = groups.part(whole, count, groups.base[whole:]) if whole else groups
            _int_phases(workers, data, down_offset, rest, acts, inner, out)
    if whole < count and len(rounded):
        wanted = groups.order[groups.start[whole] : groups.start[count]]
        workers.run(quantise.round_bf16, len(wanted), out, rounded, wanted)


def _int_phases(
    workers: Workers,
    data: np.ndarray,
    down_offset: int,
    groups: Groups,
    acts: Activations,
    inner: Inner,
    out: np.ndarray,
) -> None:
    count, blocks = len(groups.base), inner.values.shape[1] // layout.ROWS
    rows = (acts.rows, acts.sums, acts.scale)
    pairs = (groups.base, groups.start, groups.row_of)
    workers.run(experts.gate_up_int, count * blocks, data, *pairs, *rows, blocks, inner.values)
    first, last = int(groups.start[0]), int(groups.start[-1])
    values, high, low, sums_high, sums_low, scale = (array[first:last] for array in inner)
    workers.run(quantise.quantise_planes, last - first, values, high, low, scale, sums_high, sums_low)
    blobs = (data, groups.base, down_offset, groups.start)
    workers.run(
        experts.down_int, count * (out.shape[1] // layout.ROWS), *blobs, *inner[1:], out, groups.order
    )


def shares(start: np.ndarray, threads: int) -> list[int]:
    """Bounds of the groups that each thread takes whole, in one call.

    Groups after the last bound are split by blocks, a call a phase. start: [G + 1] int64, the groups' pairs.
    With few rows a group costs its weights, as all others do: as many for each thread. Else it costs its
    rows, and threads take neighbouring groups of about as many rows, if a cut is found that leaves nobody
    waiting.
    """
    count, pairs = len(start) - 1, int(start[-1] - start[0])
    if threads == 1:
        return [0, count]
    if pairs <= FEW_ROWS * count and (pairs < MANY or np.diff(start).max() < MANY):
        each = count // threads
        return [each * thread for thread in range(threads + 1)]
    cost = np.concatenate([[0], np.cumsum(np.maximum(np.diff(start), MANY))])
    fair = cost[-1] / threads
    bounds = [int(np.abs(cost - fair * thread).argmin()) for thread in range(threads + 1)]
    longest = np.diff(cost[bounds]).max()
    return bounds if longest <= WAIT * fair else [0]


def _float_phases(
    workers: Workers,
    data: np.ndarray,
    down_offset: int,
    groups: Groups,
    acts: Activations,
    inner: np.ndarray,
    out: np.ndarray,
) -> None:
    count, blocks = len(groups.base), inner.shape[1] // layout.ROWS
    pairs = (groups.base, groups.start, groups.row_of)
    workers.run(experts.gate_up_float, count * blocks, data, *pairs, acts.rows, blocks, inner)
    blobs = (data, groups.base, down_offset, groups.start)
    workers.run(experts.down_float, count * (out.shape[1] // layout.ROWS), *blobs, inner, out, groups.order)
