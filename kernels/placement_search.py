"""The search that improves the placement of one layer, led by the bottleneck of its exact dispatch.

Experts come by falling load. where[e, : count[e]] are the devices of expert e; where: [E, D] int32.
"""

from __future__ import annotations

import numpy as np

from kernels.flow import flow_between
from kernels.jit import (
    F64,
    I32_2,
    I64_1,
    INT,
    U64,
    inline,
    kernel,
    part,
)
from kernels.placement_state import RULE, draw, holds, pull_of, put_on, take_off

UNITS = 2.0**44


@part
def _makespan(rows, speed, where, count, earliest, latest, starts, hosts, out):  # type: ignore[no-untyped-def]
    """Of the layer's rows under the best dispatch (flow_between); starts, hosts, out: filled."""
    copies = 0
    for e in range(count.size):
        starts[e] = copies
        for i in range(count[e]):
            hosts[copies] = where[e, i]
            copies += 1
    starts[count.size] = copies
    still = np.zeros(speed.size)
    return flow_between(rows, starts, hosts[:copies], speed, still, earliest, latest, out)


@part
def _bottleneck(speed, starts, hosts, out, slow, tied):  # type: ignore[no-untyped-def]
    """The last device and all that its rows could flow to or from; fills slow [D], tied [E] and returns how
    many experts are tied. No slow device has room, or the dispatch was not the best."""
    done = np.zeros(speed.size)
    for c in range(starts[-1]):
        done[hosts[c]] += out[c]
    slow[:] = False
    tied[:] = False
    slow[np.argmax(done / speed)] = True
    found, grown = 0, True
    while grown:
        grown = False
        for e in range(tied.size):
            if tied[e]:
                continue
            for c in range(starts[e], starts[e + 1]):
                tied[e] = tied[e] or (out[c] > 0 and slow[hosts[c]])
            if tied[e]:
                found, grown = found + 1, True
                for c in range(starts[e], starts[e + 1]):
                    slow[hosts[c]] = True
    return found


@part
def _closeness(e, other, site, fixed, pairs, where, count, pull):  # type: ignore[no-untyped-def]
    """What two experts gain by their places, rows split evenly over copies; other may be -1: none."""
    total = 0.0
    if pull.size:
        pull_of(e, e, site, fixed, pairs, where, count, pull)
        for i in range(count[e]):
            total += pull[site[where[e, i]]] / count[e]
        if other >= 0:
            pull_of(other, e, site, fixed, pairs, where, count, pull)
            for i in range(count[other]):
                total += pull[site[where[other, i]]] / count[other]
    return total


@inline
def _moved(e, keep, move_cost, where, count):  # type: ignore[no-untyped-def]
    """Cost of the copies of e that are not where it is now; e may be -1: none."""
    total = 0.0
    if keep.size and e >= 0:
        for i in range(count[e]):
            if not keep[e, where[e, i]]:
                total += move_cost[e]
    return total


@part
def _any_on(device, state, where, count):  # type: ignore[no-untyped-def]
    """A random expert of those that the device holds, -1 if it holds none."""
    held = 0
    for e in range(count.size):
        held += holds(e, device, where, count)
    if held == 0:
        return np.int64(-1)
    pick = draw(state, held)
    for e in range(count.size):
        pick -= holds(e, device, where, count)
        if pick < 0:
            return np.int64(e)
    return np.int64(-1)


@inline
def _any_tied(tied, found, state):  # type: ignore[no-untyped-def]
    pick = draw(state, found)
    for e in range(tied.size):
        pick -= tied[e]
        if pick < 0:
            return np.int64(e)
    return np.int64(0)


@part
def _propose(led, slow, tied, found, size, where, count, free, state):  # type: ignore[no-untyped-def]
    """A change (e, to, f, away): e goes to device `to`, from device `away` unless that is -1; f, unless it is
    -1, leaves `to`, for `away` if that is not -1. e is -1 where the draw led to nothing.

    led: e is tied to the bottleneck and `to` is not.
    """
    nothing = (np.int64(-1), np.int64(-1), np.int64(-1), np.int64(-1))
    e = _any_tied(tied, found, state) if led else draw(state, count.size)
    to = draw(state, free.size)
    if holds(e, to, where, count) or (led and slow[to]):
        return nothing
    if free[to] >= size[e]:
        return e, to, np.int64(-1), np.int64(-1)
    f = _any_on(to, state, where, count)
    if f < 0 or free[to] + size[f] < size[e]:
        return nothing
    if count[f] > 1 and draw(state, 2) == 0:
        return e, to, f, np.int64(-1)
    away = np.int64(where[e, draw(state, count[e])])
    if holds(f, away, where, count) or free[away] + size[e] < size[f]:
        return nothing
    return e, to, f, away


@inline
def _change(e, to, f, away, size, where, count, free):  # type: ignore[no-untyped-def]
    if f >= 0:
        take_off(f, to, size, where, count, free)
    if away >= 0:
        take_off(e, away, size, where, count, free)
    put_on(e, to, size, where, count, free)
    if f >= 0 and away >= 0:
        put_on(f, away, size, where, count, free)


@inline
def _change_back(e, to, f, away, size, where, count, free):  # type: ignore[no-untyped-def]
    if f >= 0 and away >= 0:
        take_off(f, away, size, where, count, free)
    take_off(e, to, size, where, count, free)
    if away >= 0:
        put_on(e, away, size, where, count, free)
    if f >= 0:
        put_on(f, to, size, where, count, free)


@kernel(F64(*RULE, F64, INT, U64, I32_2, I64_1, I64_1))
def improve_layer(  # type: ignore[no-untyped-def]
    load, size, speed, site, fixed, pairs, keep, move_cost, goal, tries, seed, where, count, free
):
    """Change the placement of one layer, one or two copies at a time, where its cost does not grow.

    Types as in fill_layer; every expert has a copy. The cost is the makespan of the best dispatch as a
    multiple of Σ load / Σ speed, plus move_cost of copies that are not in `keep`, less what copies gain by
    their places. Ends after `tries` changes tried, or at a makespan ≤ goal where places gain nothing. Most
    changes take an expert that is tied to the slowest device to one that is not. Returns the makespan as that
    multiple plus the change of the other costs.
    """
    total = load.sum()
    if total == 0:
        return 1.0
    rows = np.rint(load * (UNITS / total)).astype(np.int64)
    scale = speed.sum() / rows.sum()
    experts, devices = where.shape
    state, close = np.full(1, seed), fixed.size + pairs.size > 0
    pull = np.zeros(site.max() + 1 if close else 0)
    most_copies = min(count.sum() + tries, experts * devices)
    starts, hosts = np.empty(experts + 1, np.int64), np.empty(most_copies, np.int32)
    out = np.empty(most_copies, np.int64)
    slow, tied = np.zeros(devices, np.bool_), np.zeros(experts, np.bool_)
    enough = goal / scale
    others = 0.0
    time = _makespan(rows, speed, where, count, enough, np.inf, starts, hosts, out) * scale
    if time <= goal and not close:
        return time
    found = _bottleneck(speed, starts, hosts, out, slow, tied)
    for _ in range(tries):
        if time <= goal and not close:
            break
        led = time > goal and draw(state, 4) > 0
        e, to, f, away = _propose(led, slow, tied, found, size, where, count, free, state)
        if e < 0:
            continue
        before = _moved(e, keep, move_cost, where, count) + _moved(f, keep, move_cost, where, count)
        before -= _closeness(e, f, site, fixed, pairs, where, count, pull)
        _change(e, to, f, away, size, where, count, free)
        after = _moved(e, keep, move_cost, where, count) + _moved(f, keep, move_cost, where, count)
        after -= _closeness(e, f, site, fixed, pairs, where, count, pull)
        most = time + before - after + 1e-12
        tried = _makespan(rows, speed, where, count, enough, most / scale, starts, hosts, out) * scale
        if tried <= most:
            time, others = tried, others + after - before
            found = _bottleneck(speed, starts, hosts, out, slow, tied)
        else:
            _change_back(e, to, f, away, size, where, count, free)
    return time + others
