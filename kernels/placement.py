"""Which devices hold which experts of one layer: the greedy start.

Experts come by falling load. where[e, : count[e]] are the devices of expert e; where: [E, D] int32.
"""

from __future__ import annotations

import numpy as np

from kernels.jit import (
    BOOL_3,
    I32_2,
    I32_3R,
    I64_1,
    I64_1R,
    I64_2R,
    INT,
    VOID,
    inline,
    kernel,
    part,
)
from kernels.placement_state import RULE, pull_of, put_on

_LINK = 0.05
"""A replica avoids devices that its expert's other devices share experts with already, for this much of the
layer's time each: rows can then flow further. Measured in docs/decisions/0015."""

_SLIGHT = 1e-6
"""Of a load below the fair share, where other things decide: the lighter of two equal devices is taken."""


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


@kernel(INT(*RULE, I64_1R, INT, I32_2, I64_1, I64_1))
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
                    pull_of(e, e, site, fixed, pairs, where, count, pull)
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
                put_on(e, d, size, where, count, free)
                room[d] -= size[e]
                done[d] += share[e]
    return homeless


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
