"""Cases of the kernels that decide where rows go and who holds experts: flow.py, choice.py, placement.py."""

from __future__ import annotations

import numpy as np

from kernels import choice, flow, placement
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


def _layer(draws: Draws, near: bool) -> tuple[np.ndarray, ...]:
    """The first eight arguments of the placement kernels; all numbers are exact in binary."""
    load = np.sort(draws.integers(0, 400, _EXPERTS) / 4)[::-1].copy()
    size, speed = draws.integers(1, 3, _EXPERTS), draws.integers(1, 5, _DEVICES) / 2
    site = np.arange(_DEVICES) % 2
    if not near:
        none = np.zeros((0, 0))
        return load, size, speed, site, none, none, np.zeros((0, 0), np.bool_), np.zeros(0)
    pairs = draws.integers(0, 16, (_EXPERTS, _EXPERTS)) / 4096
    pairs = pairs + pairs.T
    np.fill_diagonal(pairs, 0)
    keep = draws.integers(0, 4, (_EXPERTS, _DEVICES)) == 0
    return load, size, speed, site, draws.integers(0, 8, (_EXPERTS, 2)) / 256, pairs, keep, size / 1024


def _filled(layer: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    where, count = np.zeros((_EXPERTS, _DEVICES), np.int32), np.zeros(_EXPERTS, np.int64)
    free = np.full(_DEVICES, 12)
    homeless = placement.fill_layer(*layer, free.copy(), 70, where, count, free)
    return where, count, free, np.array([homeless])


@case
def fill_layer(draws: Draws) -> Arrays:
    for near in (False, True):
        yield from _filled(_layer(draws, near))


@case
def improve_layer(draws: Draws) -> Arrays:
    for near in (False, True):
        layer = _layer(draws, near)
        *state, _ = _filled(layer)
        yield np.array([placement.improve_layer(*layer, 1.0, 200, np.uint64(3), *state)])
        yield from state


@case
def spread_hosts(draws: Draws) -> Arrays:
    where = np.stack([draws.permutation(_DEVICES) for _ in range(2 * 5)]).astype(np.int32)
    expert = np.stack([draws.permutation(5) for _ in range(2)])
    hosts = np.zeros((2, 5, _DEVICES), np.bool_)
    count = draws.integers(0, _DEVICES, (2, 5))
    placement.spread_hosts(where.reshape(2, 5, -1), count, expert, draws.permutation(_DEVICES), hosts)
    yield hosts
