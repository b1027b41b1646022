"""Rows of a call to the copies of its experts, and what the answers tell about the nodes that have them.

Copies are numbered as in kernels/flow.py: expert e has the copies starts[e] … starts[e + 1] - 1, and copy c
is on node hosts[c]. A plan over copies in place of experts (kernels/permute.py) takes hosts for the owners,
so that choosing copies changes nothing there.
"""

from __future__ import annotations

import numpy as np

from kernels.flow import flow_rows
from kernels.jit import (
    F64,
    F64_1,
    F64_1R,
    F64_2,
    I32_1,
    I32_1R,
    I32_2,
    I32_2R,
    I64_1,
    I64_1R,
    I64_2,
    I64_2R,
    INT,
    VOID,
    inline,
    kernel,
)

KEEP = 1.0 - 1.0 / 256
"""What an older answer weighs beside the next one in a node's speed."""

FORGET = 1.0 - 1.0 / 65536
"""A node that is sent nothing is thought a little faster with every call, or it would never be tried again
once it was slow."""

PAIRS, SECONDS, SPEED, BACKLOG = range(4)
"""Rows of `pace` in observe_call."""


@kernel(VOID(I32_2R, I64_1))
def count_rows(ids, rows):  # type: ignore[no-untyped-def]
    """rows[e] = how many tokens chose expert e. ids: [T, k]; rows: int64 [experts], filled."""
    rows[:] = 0
    for t in range(ids.shape[0]):
        for r in range(ids.shape[1]):
            rows[ids[t, r]] += 1


@kernel(VOID(I32_2R, I64_1R, I64_1, I32_2))
def give_rows(ids, starts, chosen, copies):  # type: ignore[no-untyped-def]
    """Hand an expert's rows, in the order of the tokens, to its copies: the first chosen[c] to copy c, and so
    on; the last copy takes what is left over.

    ids: [T, k]; starts: [experts + 1]; chosen: int64 [copies], used up; copies: int32 [T, k], filled.
    """
    place = starts[:-1].copy()
    for t in range(ids.shape[0]):
        for r in range(ids.shape[1]):
            expert = ids[t, r]
            copy = place[expert]
            while chosen[copy] <= 0 and copy + 1 < starts[expert + 1]:
                copy += 1
            place[expert] = copy
            chosen[copy] -= 1
            copies[t, r] = copy


@kernel(VOID(I32_2R, I64_1R, I32_1R, F64_1R, F64_1R, I64_1, I64_1, I32_2))
def flow_copies(ids, starts, hosts, speed, backlog, rows, chosen, copies):  # type: ignore[no-untyped-def]
    """count_rows, flow_rows and give_rows in one call: the copy that computes each (token, rank) pair.

    speed: [nodes] rows per second > 0; backlog: [nodes] seconds ≥ 0. rows: int64 [experts] and chosen: int64
    [copies] are scratch. copies: int32 [T, k], filled.
    """
    count_rows(ids, rows)
    flow_rows(rows, starts, hosts, speed, backlog, chosen)
    give_rows(ids, starts, chosen, copies)


@kernel(VOID(I32_1R, I32_1))
def name_experts(expert_of, experts):  # type: ignore[no-untyped-def]
    """Turn copy numbers into the experts that they are copies of, in place. expert_of: [copies]."""
    for pair in range(experts.size):
        experts[pair] = expert_of[experts[pair]]


@inline
def _set_speeds(pace):  # type: ignore[no-untyped-def]
    """Rows per second of every node; one that has not answered yet is as fast as the others on average."""
    total, known = 0.0, 0
    for node in range(pace.shape[1]):
        if pace[SECONDS, node] > 0:
            pace[SPEED, node] = pace[PAIRS, node] / pace[SECONDS, node]
            total += pace[SPEED, node]
            known += 1
    for node in range(pace.shape[1]):
        if pace[SECONDS, node] <= 0:
            pace[SPEED, node] = total / known if known else 1.0


@kernel(VOID(I32_1R, I64_1R, I64_2R, INT, I64_1, F64_2, F64_2))
def observe_call(experts, pair_start, loads, n_experts, rows, sums, pace):  # type: ignore[no-untyped-def]
    """Count an answered call.

    experts: [P], node n's at pair_start[n] … pair_start[n + 1]; loads: [nodes, 2] what each node last told,
    messages waiting and µs of service.
    rows: int64 [experts], += rows of each. sums: float64 [nodes, 4], += (messages, rows, distinct experts,
    seconds of service) of the nodes that had rows.
    pace: float64 [4, nodes]: PAIRS and SECONDS are decayed sums, SPEED rows per second, BACKLOG the seconds
    that the messages waiting there take if each takes as long as the last; halved with every call that does
    not ask the node.
    """
    last = np.full(n_experts, -1, np.int64)
    for node in range(pace.shape[1]):
        first, end = pair_start[node], pair_start[node + 1]
        if first == end:
            pace[SECONDS, node] *= FORGET
            pace[BACKLOG, node] *= 0.5
            continue
        distinct = 0
        for pair in range(first, end):
            expert = experts[pair]
            rows[expert] += 1
            if last[expert] != node:
                last[expert] = node
                distinct += 1
        seconds = max(loads[node, 1], 1) * 1e-6
        sums[node, 0] += 1.0
        sums[node, 1] += end - first
        sums[node, 2] += distinct
        sums[node, 3] += seconds
        pace[PAIRS, node] = KEEP * pace[PAIRS, node] + (end - first)
        pace[SECONDS, node] = KEEP * pace[SECONDS, node] + seconds
        pace[BACKLOG, node] = loads[node, 0] * seconds
    _set_speeds(pace)


@kernel(INT(I64_2, F64_2, F64_2, F64, F64_2, F64_1, F64_2))
def fold_step(rows, sums, links, decay, all_rows, all_distinct, all_nodes):  # type: ignore[no-untyped-def]
    """Fold one step into decayed sums, unless it has no rows, and clear what it was counted in. Returns the
    most rows of a layer.

    rows: [layers, experts]; sums: [nodes, 4] and links: [nodes, 6], as cluster/dispatch/pace.py counts them.
    all_rows: [layers, experts]; all_distinct: [layers], += experts that have rows; all_nodes: [nodes, 10],
    sums before links.
    """
    most = 0
    for layer in range(rows.shape[0]):
        most = max(most, rows[layer].sum())
    if most == 0:
        return most
    for layer in range(rows.shape[0]):
        distinct = 0
        for expert in range(rows.shape[1]):
            here = rows[layer, expert]
            all_rows[layer, expert] = decay * all_rows[layer, expert] + here
            distinct += here > 0
            rows[layer, expert] = 0
        all_distinct[layer] = decay * all_distinct[layer] + distinct
    for node in range(all_nodes.shape[0]):
        for place in range(sums.shape[1]):
            all_nodes[node, place] = decay * all_nodes[node, place] + sums[node, place]
        for place in range(links.shape[1]):
            behind = sums.shape[1] + place
            all_nodes[node, behind] = decay * all_nodes[node, behind] + links[node, place]
    sums[:] = 0.0
    links[:] = 0.0
    return most
