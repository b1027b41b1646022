"""The dispatch problem: rows of experts to the devices that hold them, so that the last device ends first.

Everywhere here `hosts` is a list of copies in compressed form: the copies of expert e are copies
starts[e] … starts[e + 1] - 1, and hosts[c] is the device of copy c, each device at most once an expert.
"""

from __future__ import annotations

import numpy as np

from kernels.jit import F64, F64_1R, I32_1R, I64_1, I64_1R, inline, kernel, part


@inline
def _rows_by(time, speed, backlog):  # type: ignore[no-untyped-def]
    """Most whole rows k ≥ 0 with backlog + k / speed <= time, in float64 arithmetic exactly as written."""
    k = np.int64(max(0.0, (time - backlog) * speed))
    while k > 0 and backlog + k / speed > time:
        k -= 1
    while backlog + (k + 1) / speed <= time:
        k += 1
    return k


@part
def _fluid_time(need, members, speed, backlog):  # type: ignore[no-untyped-def]
    """Smallest time by which the member devices can do `need` rows if rows could be split at will."""
    time = np.inf
    while True:
        rate, waiting = 0.0, 0.0
        for d in range(speed.size):
            if members[d] and backlog[d] < time:
                rate += speed[d]
                waiting += speed[d] * backlog[d]
        # the devices left out were busy beyond a time that was too late: the next is no later
        earlier = (need + waiting) / rate
        if not earlier < time:
            return time
        time = earlier


@part
def _next_time(need, members, time, speed, backlog, room):  # type: ignore[no-untyped-def]
    """Smallest time ≥ `time` by which the member devices can do `need` whole rows.

    room: [devices] the whole rows that each device can do by then, filled.
    """
    time = max(time, _fluid_time(need, members, speed, backlog))
    total = np.int64(0)
    for d in range(speed.size):
        room[d] = _rows_by(time, speed[d], backlog[d])
        if members[d]:
            total += room[d]
    while total < need:
        time = np.inf
        for d in range(speed.size):
            if members[d]:
                time = min(time, backlog[d] + (room[d] + 1) / speed[d])
        for d in range(speed.size):
            while backlog[d] + (room[d] + 1) / speed[d] <= time:
                room[d] += 1
                if members[d]:
                    total += 1
    return time


@inline
def _copies_by_device(starts, hosts, devices):  # type: ignore[no-untyped-def]
    """(expert of each copy, where each device begins in the third, copies by device)."""
    copies = hosts.size
    begin, copy_of = np.zeros(devices + 1, np.int64), np.empty(copies, np.int64)
    expert_of = np.empty(copies, np.int64)
    for e in range(starts.size - 1):
        for c in range(starts[e], starts[e + 1]):
            expert_of[c] = e
            begin[hosts[c] + 1] += 1
    for d in range(devices):
        begin[d + 1] += begin[d]
    place = begin.copy()
    for c in range(copies):
        copy_of[place[hosts[c]]] = c
        place[hosts[c]] += 1
    return expert_of, begin, copy_of


@part
def _place_alone(rows, starts, hosts, load, out):  # type: ignore[no-untyped-def]
    """Give experts of one copy to it. Returns the others that have rows: most first, ties to the lower."""
    experts = rows.size
    keys, count = np.empty(experts, np.int64), 0
    for e in range(experts):
        first, copies = starts[e], starts[e + 1] - starts[e]
        for c in range(first, first + copies):
            out[c] = 0
        if copies == 1:
            out[first] = rows[e]
            load[hosts[first]] += rows[e]
        elif rows[e] > 0:
            keys[count] = -rows[e] * experts + e
            count += 1
    order = np.sort(keys[:count])
    for i in range(count):
        order[i] %= experts
    return order


@inline
def _end(load, speed, backlog):  # type: ignore[no-untyped-def]
    """When the last device that has rows ends; 0 if none has."""
    time = 0.0
    for d in range(speed.size):
        if load[d] > 0:
            time = max(time, backlog[d] + load[d] / speed[d])
    return time


@part
def _fill(order, rows, starts, hosts, room, load, out, left):  # type: ignore[no-untyped-def]
    """Greedy start: an expert goes to its device with most room, whole if it fits; left[e] do not fit."""
    for e in order:
        left[e] = rows[e]
        while left[e] > 0:
            best, most = -1, np.int64(0)
            for c in range(starts[e], starts[e + 1]):
                free = room[hosts[c]] - load[hosts[c]]
                if free > most:
                    best, most = c, free
            if best < 0:
                break
            moved = min(most, left[e])
            out[best] += moved
            load[hosts[best]] += moved
            left[e] -= moved


@part
def _search(source, starts, hosts, index, room, load, out, via, back, queue):  # type: ignore[no-untyped-def]
    """Breadth first from an expert to a device with room, over copies that could give rows away; -1 if none.

    via[d] = the copy by which device d was reached, back[e] = the copy whose rows expert e would take away,
    both -1 where the search did not come.
    """
    expert_of, begin, copy_of = index
    via[:] = -1
    back[:] = -1
    queue[0], head, tail = source, 0, 1
    while head < tail:
        e = queue[head]
        head += 1
        for c in range(starts[e], starts[e + 1]):
            d = hosts[c]
            if via[d] >= 0:
                continue
            via[d] = c
            if load[d] < room[d]:
                return np.int64(d)
            for i in range(begin[d], begin[d + 1]):
                other = expert_of[copy_of[i]]
                if out[copy_of[i]] > 0 and back[other] < 0 and other != source:
                    back[other] = copy_of[i]
                    queue[tail] = other
                    tail += 1
    return np.int64(-1)


@part
def _push(source, device, hosts, index, room, load, out, via, back, left):  # type: ignore[no-untyped-def]
    """Send as many rows of `source` as the path found by _search can take."""
    expert_of = index[0]
    amount = min(left[source], room[device] - load[device])
    e = expert_of[via[device]]
    while e != source:
        amount = min(amount, out[back[e]])
        e = expert_of[via[hosts[back[e]]]]
    load[device] += amount
    left[source] -= amount
    copy = via[device]
    e = expert_of[copy]
    while e != source:
        out[copy] += amount
        out[back[e]] -= amount
        copy = via[hosts[back[e]]]
        e = expert_of[copy]
    out[copy] += amount


@part
def _later(source, time, speed, backlog, room, load, via, back, left):  # type: ignore[no-untyped-def]
    """The time that the cut found by a failed search proves necessary; fills room."""
    members, need = np.empty(speed.size, np.bool_), left[source]
    for d in range(speed.size):
        members[d] = via[d] >= 0
        if members[d]:
            need += load[d]
    for e in range(back.size):
        if back[e] >= 0:
            need += left[e]
    return _next_time(need, members, time, speed, backlog, room)


@part
def flow_between(rows, starts, hosts, speed, backlog, earliest, latest, out):  # type: ignore[no-untyped-def]
    """flow_rows where any makespan ≤ earliest is as good as another and one > latest is of no use.

    Returns the makespan, or infinity as soon as it is proved to be > latest; out is then of no use.
    """
    experts, devices = rows.size, speed.size
    load, room, left = np.zeros(devices, np.int64), np.zeros(devices, np.int64), np.zeros(experts, np.int64)
    order = _place_alone(rows, starts, hosts, load, out)
    total = rows.sum()
    if total == 0:
        return 0.0
    time = max(earliest, _end(load, speed, backlog))
    time = _next_time(total, np.ones(devices, np.bool_), time, speed, backlog, room)
    _fill(order, rows, starts, hosts, room, load, out, left)
    if left.any():
        index = _copies_by_device(starts, hosts, devices)
        via, back = np.empty(devices, np.int64), np.empty(experts, np.int64)
        queue = np.empty(experts, np.int64)
        for e in order:
            while left[e] > 0:
                device = _search(e, starts, hosts, index, room, load, out, via, back, queue)
                if device < 0:
                    time = _later(e, time, speed, backlog, room, load, via, back, left)
                    if time > latest:
                        return np.inf
                else:
                    _push(e, device, hosts, index, room, load, out, via, back, left)
    return _end(load, speed, backlog)


@kernel(F64(I64_1R, I64_1R, I32_1R, F64_1R, F64_1R, I64_1))
def flow_rows(rows, starts, hosts, speed, backlog, out):  # type: ignore[no-untyped-def]
    """Whole rows to copies so that the last device with rows ends as early as can be: backlog + rows / speed.

    rows: [experts] int64 ≥ 0, their sum times experts below 2**62; starts: [experts + 1]; hosts: [copies]
    int32; speed: [devices] rows per second > 0; backlog: [devices] seconds ≥ 0. out: [copies] rows, filled.
    An expert with rows has a copy. Returns the makespan in seconds, 0 without rows.

    A parametric maximum flow by Newton's method on cuts (Dinkelbach 1967; Radzik 1998): start from the time
    that all devices together need, fill greedily, augment what did not fit along shortest paths, and where no
    path is left raise the time to what that cut needs. The time is a lower bound throughout, so the end is
    optimal among whole rows.
    """
    return flow_between(rows, starts, hosts, speed, backlog, 0.0, np.inf, out)
