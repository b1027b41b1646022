"""The placement of one layer while it is made: who holds what, what is free, what draws experts together.

Experts come by falling load. where[e, : count[e]] are the devices of expert e; where: [E, D] int32.
"""

from __future__ import annotations

import numpy as np

from kernels.jit import (
    BOOL_2R,
    F64_1R,
    F64_2R,
    I64_1R,
    inline,
    part,
)

RULE = (F64_1R, I64_1R, F64_1R, I64_1R, F64_2R, F64_2R, BOOL_2R, F64_1R)
"""Types of load, size, speed, site, fixed, pairs, keep and move_cost: what a layer's placement goes by."""

_GAMMA, _MIX1, _MIX2 = (
    np.uint64(0x9E3779B97F4A7C15),
    np.uint64(0xBF58476D1CE4E5B9),
    np.uint64(0x94D049BB133111EB),
)


@inline
def draw(state, below):  # type: ignore[no-untyped-def]
    """An integer 0 … below - 1 by splitmix64; state: [1] uint64, advanced."""
    state[0] += _GAMMA
    z = state[0]
    z = (z ^ (z >> np.uint64(30))) * _MIX1
    z = (z ^ (z >> np.uint64(27))) * _MIX2
    z = z ^ (z >> np.uint64(31))
    return np.int64((z >> np.uint64(32)) * np.uint64(below) >> np.uint64(32))


@inline
def holds(e, d, where, count):  # type: ignore[no-untyped-def]
    found = False
    for i in range(count[e]):
        found = found or where[e, i] == d
    return found


@inline
def put_on(e, d, size, where, count, free):  # type: ignore[no-untyped-def]
    where[e, count[e]] = d
    count[e] += 1
    free[d] -= size[e]


@inline
def take_off(e, d, size, where, count, free):  # type: ignore[no-untyped-def]
    count[e] -= 1
    for i in range(count[e]):
        if where[e, i] == d:
            where[e, i] = where[e, count[e]]
    free[d] += size[e]


@part
def pull_of(e, skipped, site, fixed, pairs, where, count, pull):  # type: ignore[no-untyped-def]
    """pull[s] = what expert e gains by being at site s: from other layers, and from others of this one."""
    for s in range(pull.size):
        pull[s] = fixed[e, s] if fixed.size else 0.0
    if pairs.size:
        for other in range(count.size):
            if other != skipped and pairs[e, other] > 0:
                for i in range(count[other]):
                    pull[site[where[other, i]]] += pairs[e, other] / count[other]
