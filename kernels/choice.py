"""Rules for choosing replicas other than the optimum of kernels/flow.py, with `hosts` compressed as there."""

from __future__ import annotations

import numpy as np

from kernels.flow import flow_rows
from kernels.jit import F64_1R, I32_1R, I64_1, I64_1R, INT, U64, VOID, inline, kernel
from kernels.sampling import philox4x32

_HALF, _ZERO = np.uint64(32), np.uint64(0)
_LOW = np.uint64(0xFFFFFFFF)


@inline
def _end(device, load, speed, backlog):  # type: ignore[no-untyped-def]
    """When the device would end with one row more."""
    return backlog[device] + (load[device] + 1) / speed[device]


@inline
def _least_free_first(starts):  # type: ignore[no-untyped-def]
    """Experts of at most one copy, then the others, each in order."""
    experts = starts.size - 1
    order, place = np.empty(experts, np.int64), 0
    for several in (False, True):
        for e in range(experts):
            if (starts[e + 1] - starts[e] > 1) == several:
                order[place] = e
                place += 1
    return order


@kernel(VOID(I64_1R, I64_1R, I64_1))
def even_rows(rows, starts, out):  # type: ignore[no-untyped-def]
    """The same number of rows to every copy of an expert, the remainder from copy number e % copies on.

    rows: [experts] int64; starts: [experts + 1]; out: [copies] int64, filled.
    """
    for e in range(rows.size):
        first, copies = starts[e], starts[e + 1] - starts[e]
        for i in range(copies):
            share = rows[e] // copies
            if (i - e) % copies < rows[e] % copies:
                share += 1
            out[first + i] = share


@kernel(VOID(I64_1R, I64_1R, I32_1R, F64_1R, F64_1R, I64_1))
def least_loaded_rows(rows, starts, hosts, speed, backlog, out):  # type: ignore[no-untyped-def]
    """Row by row, experts in order, to the copy whose device would end first; ties to the first copy.

    Experts of one copy come first: they have no choice, and the others can know. Types as in
    kernels.flow.flow_rows.
    """
    load = np.zeros(speed.size, np.int64)
    out[:] = 0
    for e in _least_free_first(starts):
        for _ in range(rows[e]):
            best, earliest = starts[e], np.inf
            for c in range(starts[e], starts[e + 1]):
                end = _end(hosts[c], load, speed, backlog)
                if end < earliest:
                    best, earliest = c, end
            out[best] += 1
            load[hosts[best]] += 1


@inline
def _two_copies(e, row, first, copies, seed):  # type: ignore[no-untyped-def]
    """Two different copies of an expert drawn at random, or its only one twice."""
    words = philox4x32(np.uint64(row), np.uint64(e), _ZERO, _ZERO, seed & _LOW, seed >> _HALF)
    one = np.int64((words[0] * np.uint64(copies)) >> _HALF)
    if copies == 1:
        return first, first
    step = np.int64((words[1] * np.uint64(copies - 1)) >> _HALF)
    return first + one, first + (one + 1 + step) % copies


@kernel(VOID(I64_1R, I64_1R, I32_1R, F64_1R, F64_1R, U64, I64_1))
def power_of_two_rows(rows, starts, hosts, speed, backlog, seed, out):  # type: ignore[no-untyped-def]
    """Row by row to the one of two random copies whose device would end first.

    Experts in the order of least_loaded_rows. The draws are Philox of (row, expert) under `seed`. Types as in
    kernels.flow.flow_rows.
    (Mitzenmacher 2001, "The power of two choices in randomized load balancing".)
    """
    load = np.zeros(speed.size, np.int64)
    out[:] = 0
    for e in _least_free_first(starts):
        first, copies = starts[e], starts[e + 1] - starts[e]
        for row in range(rows[e]):
            one, two = _two_copies(e, row, first, copies, seed)
            if _end(hosts[two], load, speed, backlog) < _end(hosts[one], load, speed, backlog):
                one = two
            out[one] += 1
            load[hosts[one]] += 1


@kernel(INT(I64_1R, I64_1R, I32_1R, INT, I64_1))
def fewest_distinct_rows(rows, starts, hosts, devices, out):  # type: ignore[no-untyped-def]
    """All rows of an expert to one copy, so that the largest number of experts on a device is least.

    Returns that number. In memory-bound decode an expert costs the reading of its weights, however few its
    rows ("METRO"). An exact optimum: the flow of one unit for each expert that has rows. Types as in
    kernels.flow.flow_rows.
    """
    active = np.minimum(rows, 1)
    flow_rows(active, starts, hosts, np.ones(devices), np.zeros(devices), out)
    most, held = np.int64(0), np.zeros(devices, np.int64)
    for e in range(rows.size):
        for c in range(starts[e], starts[e + 1]):
            held[hosts[c]] += out[c]
            most = max(most, held[hosts[c]])
            out[c] *= rows[e]
    return most
