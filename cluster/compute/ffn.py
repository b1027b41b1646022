"""The SwiGLU network of many experts at once: one kernel call a phase, whatever the number of experts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cluster.compute.scratch import Scratch
from cluster.compute.threads import Workers
from kernels import experts, layout, quantise
from kernels.prefill import MANY

FEW_ROWS = 4
"""Mean rows a group up to which reading its weights is what it costs."""


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


def run_ffn(
    workers: Workers,
    scratch: Scratch,
    data: np.ndarray,
    down_offset: int,
    width: int,
    groups: Groups,
    acts: Activations,
    out: np.ndarray,
) -> None:
    """out[order[p]] = down(silu(gate(x)) * up(x)) for the rows x = acts[row_of[p]] of every group.

    data: [bytes] uint8 that holds the blobs; width: padded inner width F; out: [P, Hp] float32.
    Quantised blobs requantise the inner activations to two int8 planes, local to this call.
    """
    if not len(groups.base):
        return
    inner = scratch.take("ffn.inner", len(groups.order), width, np.float32)
    phase = _float_phases if acts.floating else _int_phases
    phase(workers, scratch, data, down_offset, groups, acts, inner, out)


def _int_phases(
    workers: Workers,
    scratch: Scratch,
    data: np.ndarray,
    down_offset: int,
    groups: Groups,
    acts: Activations,
    inner: np.ndarray,
    out: np.ndarray,
) -> None:
    pairs, width = inner.shape
    blocks, columns = width // layout.ROWS, out.shape[1] // layout.ROWS
    high = scratch.take("ffn.high", pairs, width, np.int8)
    low = scratch.take("ffn.low", pairs, width, np.int8)
    sums_high = scratch.take("ffn.sums_high", pairs, width // layout.GROUP, np.int32)
    sums_low = scratch.take("ffn.sums_low", pairs, width // layout.GROUP, np.int32)
    scale = scratch.vector("ffn.scale", pairs, np.float32)
    whole = _whole_groups(workers, groups)
    if whole:
        workers.run(
            experts.ffn_int,
            whole,
            data,
            groups.base,
            down_offset,
            groups.start,
            groups.row_of,
            acts.rows,
            acts.sums,
            acts.scale,
            inner,
            high,
            low,
            sums_high,
            sums_low,
            scale,
            out,
            groups.order,
        )
    if whole == len(groups.base):
        return
    groups = groups.part(whole, len(groups.base), groups.base[whole:])
    count = len(groups.base)
    workers.run(
        experts.gate_up_int,
        count * blocks,
        data,
        groups.base,
        groups.start,
        groups.row_of,
        acts.rows,
        acts.sums,
        acts.scale,
        blocks,
        inner,
    )
    first, last = int(groups.start[0]), int(groups.start[-1])
    workers.run(
        quantise.quantise_planes,
        last - first,
        inner[first:last],
        high[first:last],
        low[first:last],
        scale[first:last],
        sums_high[first:last],
        sums_low[first:last],
    )
    workers.run(
        experts.down_int,
        count * columns,
        data,
        groups.base,
        down_offset,
        groups.start,
        high,
        low,
        sums_high,
        sums_low,
        scale,
        out,
        groups.order,
    )


def _whole_groups(workers: Workers, groups: Groups) -> int:
    """How many groups threads take whole, in one call: as many for each thread, and none of many rows.

    The rest is split by blocks, a call a phase. With few rows a group costs its weights, as all others do.
    """
    pairs, count = int(groups.start[-1] - groups.start[0]), len(groups.base)
    if pairs > FEW_ROWS * count or (pairs >= MANY and np.diff(groups.start).max() >= MANY):
        return 0
    return count - count % workers.threads


def _float_phases(
    workers: Workers,
    scratch: Scratch,
    data: np.ndarray,
    down_offset: int,
    groups: Groups,
    acts: Activations,
    inner: np.ndarray,
    out: np.ndarray,
) -> None:
    blocks, columns = inner.shape[1] // layout.ROWS, out.shape[1] // layout.ROWS
    count = len(groups.base)
    workers.run(
        experts.gate_up_float,
        count * blocks,
        data,
        groups.base,
        groups.start,
        groups.row_of,
        acts.rows,
        blocks,
        inner,
    )
    workers.run(
        experts.down_float,
        count * columns,
        data,
        groups.base,
        down_offset,
        groups.start,
        inner,
        out,
        groups.order,
    )
