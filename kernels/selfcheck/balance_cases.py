"""Cases of the kernels that decide where rows go (kernels/flow.py, kernels/choice.py)."""

from __future__ import annotations

import numpy as np

from kernels import choice, flow
from kernels.selfcheck.cases import Arrays, case
from kernels.selfcheck.draws import Draws

_EXPERTS, _DEVICES = 40, 7


def _copies(draws: Draws) -> tuple[np.ndarray, np.ndarray]:
    """(starts, hosts) with one to three copies an expert."""
    counts = draws.integers(1, 4, _EXPERTS)
    order = [np.sort(draws.permutation(_DEVICES)[:count]) for count in counts]
    return np.concatenate([[0], np.cumsum(counts)]), np.concatenate(order).astype(np.int32)


def _batch(draws: Draws) -> tuple[np.ndarray, ...]:
    """(rows, starts, hosts, speed, backlog); speeds and backlogs are exact in binary."""
    speed, backlog = draws.integers(1, 32, _DEVICES) / 4, draws.integers(0, 16, _DEVICES) / 8
    return draws.integers(0, 90, _EXPERTS), *_copies(draws), speed, backlog


def _no_rows(copies: np.ndarray) -> np.ndarray:
    return np.zeros(copies.size, np.int64)


@case
def flow_rows(draws: Draws) -> Arrays:
    batch = _batch(draws)
    out = _no_rows(batch[2])
    yield np.array([flow.flow_rows(*batch, out)])
    yield out


@case
def even_rows(draws: Draws) -> Arrays:
    rows, starts, hosts, *_ = _batch(draws)
    out = _no_rows(hosts)
    choice.even_rows(rows, starts, out)
    yield out


@case
def least_loaded_rows(draws: Draws) -> Arrays:
    batch = _batch(draws)
    out = _no_rows(batch[2])
    choice.least_loaded_rows(*batch, out)
    yield out


@case
def power_of_two_rows(draws: Draws) -> Arrays:
    batch = _batch(draws)
    out = _no_rows(batch[2])
    choice.power_of_two_rows(*batch, np.uint64(5 << 40), out)
    yield out


@case
def fewest_distinct_rows(draws: Draws) -> Arrays:
    rows, starts, hosts, *_ = _batch(draws)
    out = _no_rows(hosts)
    yield np.array([choice.fewest_distinct_rows(rows // 30, starts, hosts, _DEVICES, out)])
    yield out
