"""Which devices hold which experts of one layer: a greedy start and a search that is led by the bottleneck.

Experts come by falling load. where[e, : count[e]] are the devices of expert e; where: [E, D] int32.
"""

from __future__ import annotations

import numpy as np

from kernels.flow import flow_between
from kernels.jit import (
    BOOL_2R,
    BOOL_3,
    F64,
    F64_1R,
    F64_2R,
    I32_2,
    I32_3R,
    I64_1,
    I64_1R,
    I64_2R,
    INT,
    U64,
    VOID,
    inline,
    kernel,
    part,
)

_UNITS = 2.0**44
_LINK = 0.05
"""A replica avoids devices that its expert's other devices share experts with already, for this much of the
layer's time each: rows can then flow further. Measured in docs/decisions/0015."""

_SLIGHT = 1e-6
"""Of a load below the fair share, where other things decide: the lighter of two equal devices is taken."""

_GAMMA, _MIX1, _MIX2 = (
    np.uint64(0x9E3779B97F4A7C15),
    np.uint64(0xBF58476D1CE4E5B9),
    np.uint64(0x94D049BB133111EB),
)


@inline
def _draw(state, below):  # type: ignore[no-untyped-def]
    """An integer 0 … below - 1 by splitmix64; state: [1] uint64, advanced."""
    state[0] += _GAMMA
    z = state[0]
    z = (z ^ (z >> np.uint64(30))) * _MIX1
    z = (z ^ (z >> np.uint64(27))) * _MIX2
    z = z ^ (z >> np.uint64(31))
    return np.int64((z >> np.uint64(32)) * np.uint64(below) >> np.uint64(32))


@inline
def _holds(e, d, where, count):  # type: ignore[no-untyped-def]
    found = False
    for i in range(count[e]):
        found = found or where[e, i] == d
    return found


@part
def _wanted(load, size, devices, count, room):  # type: ignore[no-untyped-def]
    """How many copies each expert should have: one, and while `room` bytes last more of the largest share.

    load falls, so only the experts that have several and the first that has one can be next.
    """
    wanted = np.maximum(count, 1)
    share = load / wanted
    for e in range(load.size):
        room -= (wanted[e] - count[e]) * size[e]
    while True:
        best, most = -1, 0.0
        for e in range(load.size):
            if share[e] > most and wanted[e] < devices and size[e] <= room:
                best, most = e, share[e]
            if wanted[e] == 1:
                break
        if best < 0:
            return wanted
        wanted[best] += 1
        share[best] = load[best] / wanted[best]
        room -= size[best]


@inline
def _add(e, d, size, where, count, free):  # type: ignore[no-untyped-def]
    where[e, count[e]] = d
    count[e] += 1
    free[d] -= size[e]


@inline
def _remove(e, d, size, where, count, free):  # type: ignore[no-untyped-def]
    count[e] -= 1
    for i in range(count[e]):
        if where[e, i] == d:
            where[e, i] = where[e, count[e]]
    free[d] += size[e]


@part
def _pull(e, skipped, site, fixed, pairs, where, count, pull):  # type: ignore[no-untyped-def]
    """pull[s] = what expert e gains by being at site s: from other layers, and from others of this one."""
    for s in range(pull.size):
        pull[s] = fixed[e, s] if fixed.size else 0.0
    if pairs.size:
        for other in range(count.size):
            if other != skipped and pairs[e, other] > 0:
                for i in range(count[other]):
                    pull[site[where[other, i]]] += pairs[e, other] / count[other]


@inline
def _soonest(share, size, pace, room, done):  # type: ignore[no-untyped-def]
    """_best_device where only load and room count."""
    best, lowest = np.int64(-1), np.inf
    for d in range(pace.size):
        cost = (done[d] + share) * pace[d]
        if cost < lowest and room[d] >= size:
            best, lowest = np.int64(d), cost
    return best


@inline
def _best_device(e, share, pace, size, site, keep, move_cost, where, count, room, done, linked, pull):  # type: ignore[no-untyped-def]
    """The device for a further copy of e: room for it, soonest done, few links repeated; -1 if none has."""
    best, lowest, plain = np.int64(-1), np.inf, pull.size + keep.size == 0
    for d in range(pace.size):
        if room[d] < size[e]:
            continue
        cost = (done[d] + share) * pace[d]
        if plain and cost >= lowest:
            continue
        if not plain:
            # up to its fair share a device's load hardly counts: closeness and what is there decide
            cost = max(cost, 1.0) + _SLIGHT * cost
        if pull.size:
            cost -= pull[site[d]]
        if keep.size and keep[e, d]:
            cost -= move_cost[e]
        for i in range(count[e]):
            cost += np.inf if where[e, i] == d else _LINK * linked[where[e, i], d]
        if cost < lowest:
            best, lowest = np.int64(d), cost
    return best


@inline
def _roomiest(size, free):  # type: ignore[no-untyped-def]
    """The device with most bytes free, -1 if they are fewer than `size`."""
    d = np.argmax(free)
    return d if free[d] >= size else np.int64(-1)


_RULE = (F64_1R, I64_1R, F64_1R, I64_1R, F64_2R, F64_2R, BOOL_2R, F64_1R)


@kernel(INT(*_RULE, I64_1R, INT, I32_2, I64_1, I64_1))
def fill_layer(load, size, speed, site, fixed, pairs, keep, move_cost, quota, spare, where, count, free):  # type: ignore[no-untyped-def]
    """Give every expert without a copy one, then copies to the largest shares while the layer's quota lasts.

    load: [E] ≥ 0, falling; size: [E] bytes; speed: [D]; site: [D] 0 … S - 1.
    fixed: [E, S], pairs: [E, E] symmetric with a zero diagonal: what an expert gains by being at a site, or
    at one site with another expert, as shares of the layer's ideal time (empty: nothing).
    keep: [E, D] where copies are now (empty: nowhere), move_cost: [E] of a copy that is not there.
    quota: [D] bytes for this layer, which a first copy may exceed; spare: bytes of them for first and further
    copies. where, count, free ([D] bytes): updated. Returns how many experts found no room.
    """
    experts, devices = load.size, speed.size
    room = np.minimum(quota, free)
    wanted = _wanted(load, size, devices, count, spare)
    share, done = load / wanted, np.zeros(devices)
    pace = speed.sum() / max(load.sum(), 1e-300) / speed
    linked = np.zeros((devices, devices), np.uint8)
    pull = np.zeros(site.max() + 1 if fixed.size + pairs.size else 0)
    plain = pull.size + keep.size == 0
    for e in range(experts):
        for i in range(count[e]):
            done[where[e, i]] += share[e]
    order, homeless = np.argsort(-share, kind="mergesort"), 0
    for first in (True, False):
        for e in order:
            while count[e] < (1 if first else wanted[e]):
                if pull.size:
                    _pull(e, e, site, fixed, pairs, where, count, pull)
                if plain and first:
                    d = _soonest(share[e], size[e], pace, room, done)
                else:
                    rest = (done, linked, pull)
                    d = _best_device(
                        e, share[e], pace, size, site, keep, move_cost, where, count, room, *rest
                    )
                if d < 0 and first:
                    d = _roomiest(size[e], free)
                if d < 0:
                    homeless += first
                    break
                for i in range(count[e]):
                    linked[where[e, i], d] = linked[d, where[e, i]] = min(linked[d, where[e, i]] + 1, 255)
                _add(e, d, size, where, count, free)
                room[d] -= size[e]
                done[d] += share[e]
    return homeless


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
        _pull(e, e, site, fixed, pairs, where, count, pull)
        for i in range(count[e]):
            total += pull[site[where[e, i]]] / count[e]
        if other >= 0:
            _pull(other, e, site, fixed, pairs, where, count, pull)
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
        held += _holds(e, device, where, count)
    if held == 0:
        return np.int64(-1)
    pick = _draw(state, held)
    for e in range(count.size):
        pick -= _holds(e, device, where, count)
        if pick < 0:
            return np.int64(e)
    return np.int64(-1)


@inline
def _any_tied(tied, found, state):  # type: ignore[no-untyped-def]
    pick = _draw(state, found)
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
    e = _any_tied(tied, found, state) if led else _draw(state, count.size)
    to = _draw(state, free.size)
    if _holds(e, to, where, count) or (led and slow[to]):
        return nothing
    if free[to] >= size[e]:
        return e, to, np.int64(-1), np.int64(-1)
    f = _any_on(to, state, where, count)
    if f < 0 or free[to] + size[f] < size[e]:
        return nothing
    if count[f] > 1 and _draw(state, 2) == 0:
        return e, to, f, np.int64(-1)
    away = np.int64(where[e, _draw(state, count[e])])
    if _holds(f, away, where, count) or free[away] + size[e] < size[f]:
        return nothing
    return e, to, f, away


@inline
def _change(e, to, f, away, size, where, count, free):  # type: ignore[no-untyped-def]
    if f >= 0:
        _remove(f, to, size, where, count, free)
    if away >= 0:
        _remove(e, away, size, where, count, free)
    _add(e, to, size, where, count, free)
    if f >= 0 and away >= 0:
        _add(f, away, size, where, count, free)


@inline
def _change_back(e, to, f, away, size, where, count, free):  # type: ignore[no-untyped-def]
    if f >= 0 and away >= 0:
        _remove(f, away, size, where, count, free)
    _remove(e, to, size, where, count, free)
    if away >= 0:
        _add(e, away, size, where, count, free)
    if f >= 0:
        _add(f, to, size, where, count, free)


@kernel(F64(*_RULE, F64, INT, U64, I32_2, I64_1, I64_1))
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
    rows = np.rint(load * (_UNITS / total)).astype(np.int64)
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
        led = time > goal and _draw(state, 4) > 0
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


@kernel(VOID(I32_3R, I64_2R, I64_2R, I64_1R, BOOL_3))
def spread_hosts(where, count, expert, device, hosts):  # type: ignore[no-untyped-def]
    """hosts[l, expert[l, e], device[where[l, e, i]]] = True for i < count[l, e].

    where: [L, E, D]; count, expert: [L, E]; device: [D]; hosts: [L, E, D] bool.
    """
    layers, experts = count.shape
    for layer in range(layers):
        for e in range(experts):
            for i in range(count[layer, e]):
                hosts[layer, expert[layer, e], device[where[layer, e, i]]] = True
