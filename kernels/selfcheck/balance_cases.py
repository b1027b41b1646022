"""Cases of the kernels that decide where rows go and who holds experts: flow.py, choice.py, replicas.py,
placement.py.
"""

from __future__ import annotations

import numpy as np

from kernels import choice, flow, placement, placement_search, replicas
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


def _ids(draws: Draws) -> np.ndarray:
    """[30, 8] int32, the experts of each token."""
    return np.stack([draws.permutation(_EXPERTS)[:8] for _ in range(30)]).astype(np.int32)


@case
def count_rows(draws: Draws) -> Arrays:
    rows = np.zeros(_EXPERTS, np.int64)
    replicas.count_rows(_ids(draws), rows)
    yield rows


@case
def give_rows(draws: Draws) -> Arrays:
    starts, hosts = _copies(draws)
    copies, chosen = np.zeros((30, 8), np.int32), draws.integers(0, 5, hosts.size)
    replicas.give_rows(_ids(draws), starts, chosen, copies)
    yield from (copies, chosen)


@case
def flow_copies(draws: Draws) -> Arrays:
    rows, *batch = _batch(draws)
    copies = np.zeros((30, 8), np.int32)
    replicas.flow_copies(_ids(draws), *batch, rows, _no_rows(batch[1]), copies)
    yield from (rows, copies)


@case
def name_experts(draws: Draws) -> Arrays:
    starts, hosts = _copies(draws)
    experts = draws.integers(0, hosts.size, 50).astype(np.int32)
    replicas.name_experts(np.repeat(np.arange(_EXPERTS), np.diff(starts)).astype(np.int32), experts)
    yield experts


@case
def observe_call(draws: Draws) -> Arrays:
    rows, sums, pace = np.zeros(_EXPERTS, np.int64), np.zeros((_DEVICES, 4)), np.zeros((4, _DEVICES))
    for _ in range(3):
        ends = np.sort(draws.integers(0, 241, _DEVICES - 2))
        pair_start = np.concatenate([[0], ends, [240, 240]])
        loads = draws.integers(0, 9, (_DEVICES, 2))
        replicas.observe_call(_ids(draws).reshape(-1), pair_start, loads, _EXPERTS, rows, sums, pace)
        yield from (rows, sums, pace)


@case
def fold_step(draws: Draws) -> Arrays:
    every = np.zeros((3, _EXPERTS)), np.zeros(3), np.zeros((_DEVICES, 10))
    for _ in range(3):
        rows, sums = draws.integers(0, 4, (3, _EXPERTS)), draws.integers(0, 99, (_DEVICES, 4)) / 8
        links = draws.integers(0, 99, (_DEVICES, 6)) / 8
        most = replicas.fold_step(rows, sums, links, 0.75, *every)
        yield from (np.array([most]), rows, sums, links, *every)


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
        yield np.array([placement_search.improve_layer(*layer, 1.0, 200, np.uint64(3), *state)])
        yield from state


@case
def spread_hosts(draws: Draws) -> Arrays:
    where = np.stack([draws.permutation(_DEVICES) for _ in range(2 * 5)]).astype(np.int32)
    expert = np.stack([draws.permutation(5) for _ in range(2)])
    hosts = np.zeros((2, 5, _DEVICES), np.bool_)
    count = draws.integers(0, _DEVICES, (2, 5))
    placement.spread_hosts(where.reshape(2, 5, -1), count, expert, draws.permutation(_DEVICES), hosts)
    yield hosts
