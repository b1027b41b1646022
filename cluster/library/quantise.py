"""Float rows to integers with one float scale per row (NUMERICS section 1).

Everything here is elementwise numpy plus max and sums over axis 0 of at least 16 columns, which numpy adds in
index order (a single column it adds pairwise): the same checkpoint packs to the same bytes on every machine,
and a block quantises alike whatever its neighbours. Callers pass multiples of 16 rows. Rows are first divided
by their own absolute maximum, so that neither squares nor reciprocals leave the float32 range whatever the
scale of the weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from kernels import layout

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
U8 = npt.NDArray[np.uint8]
_Float = TypeVar("_Float", np.float32, np.float64)

ZERO_ROW = np.float32(2.0**-100)
"""Rows whose absolute maximum is below this are stored as zero, as activations are (NUMERICS section 2)."""

LARGE_MULTIPLIER = 8
"""A group at multiplier 1 in a row that has one of at least this much counts as flattened by an outlier."""

STEP_FACTORS = (1.0, 0.94, 0.88, 0.82, 0.76, 0.70)
"""Candidate steps of one int4 group, relative to the step that just reaches its largest weight."""

TOP_MULTIPLIERS = (15, 14, 13, 12, 11, 10, 9, 8)
"""Candidate row scales: the ones that give the row's coarsest group this multiplier."""

CHUNK = 1 << 17
"""Weights worked on at once: two such float32 buffers stay in a second-level cache."""


@dataclass(frozen=True)
class Rows8:
    """w = scale * (u - 128). u: [N, K] uint8, scale: [N] float32, error: [N] squared error over energy."""

    u: U8
    scale: F32
    error: F64


@dataclass(frozen=True)
class Rows4:
    """w = scale * multiplier * (u - 8).

    u: [N, K] uint8 in 0..15; multiplier: [N, K/64] uint8 in 1..15; scale: [N] float32.
    error: [N] squared error over the row's energy; group_error: [N] the mean of the same ratio over the row's
    non-zero groups, which also sees small groups beside a large one.
    """

    u: U8
    multiplier: U8
    scale: F32
    error: F64
    group_error: F64

    @property
    def flattened(self) -> int:
        """Groups at multiplier 1 beside a large one: what an outlier group costs its row."""
        beside = self.multiplier.max(axis=1, keepdims=True) >= LARGE_MULTIPLIER
        return int(np.count_nonzero((self.multiplier == 1) & beside))


def quantise_int8(weights: F32) -> Rows8:
    """weights: [16 n, K] finite float32 -> symmetric int8 rows, |u - 128| <= 127, scale absmax/127."""
    rows, width = weights.shape
    u = np.full((rows, width), 128, np.uint8)
    scale = np.zeros(rows, np.float32)
    error = np.zeros(rows, np.float64)
    for part in _row_chunks(rows, width):
        unit, peak = _normalised(weights[part])
        q = np.rint(unit * np.float32(127))
        u[part] = (q + np.float32(128)).astype(np.uint8)
        scale[part] = peak / np.float32(127)
        q *= np.float32(1 / 127)
        error[part] = _ratio(_sum_of_squares(q - unit), _sum_of_squares(unit))
    return Rows8(u, scale, error)


def quantise_int4(weights: F32) -> Rows4:
    """weights: [16 n, 64 k] finite float32 -> int4 rows with integer group multipliers.

    A small search: the best float step of every group, then the row scale (of TOP_MULTIPLIERS) whose integer
    multiples serve those steps with the least squared error, then the least-squares scale for the integers
    found.
    """
    rows, width = weights.shape
    groups = width // layout.GROUP
    u = np.empty((rows, width), np.uint8)
    multiplier = np.empty((rows, groups), np.uint8)
    scale = np.empty(rows, np.float32)
    error = np.empty(rows, np.float64)
    group_error = np.empty(rows, np.float64)
    for part in _row_chunks(rows, width):
        unit, peak = _normalised(weights[part])
        # [64, rows * groups]: reductions over a group are sums over axis 0, in index order.
        lanes = np.ascontiguousarray(unit.reshape(-1, layout.GROUP).T)
        m, s = _search_row(lanes, groups)
        q = _levels(lanes, s.repeat(groups) * m)
        s = _least_squares(lanes, q * m, s)
        u[part] = (q + np.float32(8)).astype(np.uint8).T.reshape(-1, width)
        multiplier[part] = m.astype(np.uint8).reshape(-1, groups)
        scale[part] = s * peak
        q *= m * s.repeat(groups)
        error[part], group_error[part] = _errors(lanes, q, groups)
    return Rows4(u, multiplier, scale, error, group_error)


def bf16_bits(values: F32) -> npt.NDArray[np.uint16]:
    """Round finite float32 to bfloat16 bits, to nearest even, in integers (NUMERICS section 3)."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    half = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return ((bits + half) >> np.uint32(16)).astype(np.uint16)


def bf16_values(bits: npt.NDArray[np.uint16]) -> F32:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _row_chunks(rows: int, width: int) -> list[slice]:
    step = max(1, CHUNK // width // layout.ROWS) * layout.ROWS
    return [slice(i, min(i + step, rows)) for i in range(0, rows, step)]


def _normalised(weights: F32) -> tuple[F32, F32]:
    """Rows divided by their absolute maximum, and that maximum; zero rows stay zero with maximum 0."""
    peak = np.abs(weights).max(axis=1, initial=np.float32(0))
    peak = np.where(peak < ZERO_ROW, np.float32(0), peak)
    unit = np.where(peak[:, None] > 0, weights, np.float32(0))
    unit /= _or_one(peak)[:, None]
    return unit, peak


def _search_row(lanes: F32, groups: int) -> tuple[F32, F32]:
    """lanes: [64, rows * groups] -> multipliers [rows * groups] (float32 integers) and row scales [rows]."""
    wish = _best_steps(lanes)
    coarsest = wish.reshape(-1, groups).max(axis=1)
    best_error = np.full(coarsest.size, np.inf, np.float32)
    best_scale = np.zeros_like(coarsest)
    best_m = np.ones_like(wish)
    for top in TOP_MULTIPLIERS:
        s = coarsest / np.float32(top)
        m = _multipliers(wish, s.repeat(groups))
        error = _fold(_squared_error(lanes, s.repeat(groups) * m), groups)
        better = error < best_error
        best_error = np.where(better, error, best_error)
        best_scale = np.where(better, s, best_scale)
        best_m = np.where(better.repeat(groups), m, best_m)
    return best_m, best_scale


def _best_steps(lanes: F32) -> F32:
    """The step of each group that alone, with a float scale, has the least squared error. [columns]"""
    # 8 levels below zero, 7 above: whichever end reaches its extreme first sets the widest step.
    reach: F32 = np.maximum(lanes.max(axis=0) / np.float32(7), -lanes.min(axis=0) / np.float32(8))
    best_error = np.full(reach.size, np.inf, np.float32)
    best: F32 = np.zeros_like(reach)
    for factor in STEP_FACTORS:
        step = reach * np.float32(factor)
        error = _squared_error(lanes, step)
        better = error < best_error
        best_error = np.where(better, error, best_error)
        best = np.where(better, step, best)
    return best


def _multipliers(wish: F32, scale: F32) -> F32:
    m: F32 = np.rint(wish / _or_one(scale))
    np.clip(m, np.float32(1), np.float32(layout.MAX_MULTIPLIER), out=m)
    return m


def _levels(lanes: F32, step: F32) -> F32:
    """Nearest level in -8..7 of each weight, as float32; step 0 (a zero group) gives 0."""
    inverse: F32 = np.float32(1) / _or_one(step)
    q: F32 = lanes * inverse
    np.rint(q, out=q)
    np.minimum(q, np.float32(7), out=q)
    np.maximum(q, np.float32(-8), out=q)
    return q


def _squared_error(lanes: F32, step: F32) -> F32:
    q = _levels(lanes, step)
    q *= step
    q -= lanes
    q *= q
    total: F32 = q.sum(axis=0)
    return total


def _least_squares(lanes: F32, integers: F32, scale: F32) -> F32:
    """Per row argmin_s sum (w - s*n)^2 = sum(w*n) / sum(n^2), n the integers; rows of zeros keep `scale`."""
    groups = integers.shape[1] // scale.size
    above = _fold((lanes * integers).sum(axis=0), groups)
    below = _fold((integers * integers).sum(axis=0), groups)
    fitted: F32 = np.where(below > 0, above / _or_one(below), scale)
    return fitted


def _errors(lanes: F32, decoded: F32, groups: int) -> tuple[F64, F64]:
    energy = (lanes * lanes).sum(axis=0).astype(np.float64)
    decoded -= lanes
    decoded *= decoded
    error = decoded.sum(axis=0).astype(np.float64)
    ratio, alive = _ratio(error, energy), (energy > 0).astype(np.float64)
    by_group = _fold(ratio, groups) / np.maximum(_fold(alive, groups), 1)
    return _ratio(_fold(error, groups), _fold(energy, groups)), by_group


def _fold(values: npt.NDArray[_Float], groups: int) -> npt.NDArray[_Float]:
    """Sum [rows * groups] over each row's groups, in order. -> [rows]"""
    total: npt.NDArray[_Float] = np.ascontiguousarray(values.reshape(-1, groups).T).sum(axis=0)
    return total


def _sum_of_squares(rows: F32) -> F64:
    """[N, K] -> [N], added over K in order."""
    lanes = np.ascontiguousarray(rows.T)
    lanes *= lanes
    total: F32 = lanes.sum(axis=0)
    return total.astype(np.float64)


def _ratio(error: F64, energy: F64) -> F64:
    return error / _or_one(energy)


def _or_one(values: npt.NDArray[_Float]) -> npt.NDArray[_Float]:
    """A divisor for quotients that are 0 or unused where `values` is not positive."""
    safe = values.copy()
    safe[values <= 0] = 1
    return safe
