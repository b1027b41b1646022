"""One dispatch, compiled: a layer's rows go to their nodes, wait, are computed and come back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.balance import choice
from cluster.balance.choice import Batch, ChoicePolicy, Copies
from cluster.balance.fleet import Floats, Integers
from cluster.experiments.sim.model import Device, Model, Router
from kernels.choice import even_rows, least_loaded_rows, power_of_two_rows
from kernels.flow import flow_rows
from kernels.jit import probe as compiled

FIRST_S = 1e-3
"""Compute time that a device is believed to have taken as it should before any was measured."""


@dataclass(eq=False)
class Nodes:
    """Every device's rates, [devices] each, and what changes while it works.

    free: when it has computed all that it was sent. slow: factor on its compute times. links: part of its
    bandwidth that moves leave to messages. due_s, work_s: decayed sums of the compute times that the roofline
    says and that were taken; their quotient is how fast the device is for its kind.
    stamp: [devices, layers · experts] when an expert was last used, 0 for one that is not resident; used:
    [devices] resident bytes; budget: [devices] bytes, -1 without a cache (all that is placed is resident).
    """

    ops: Floats
    read: Floats
    message_s: Floats
    latency_s: Floats
    bandwidth: Floats
    storage: Floats
    free: Floats
    slow: Floats
    links: Floats
    due_s: Floats
    work_s: Floats
    stamp: Integers
    used: Integers
    budget: Integers

    @classmethod
    def of(cls, devices: list[Device], experts: int, budget: Integers) -> Nodes:
        """experts: in all layers together."""
        count = len(devices)
        cached = experts if (budget >= 0).any() else 0

        def each(name: str) -> Floats:
            return np.array([getattr(device, name) for device in devices], np.float64)

        return cls(
            ops=each("ops"),
            read=each("read"),
            message_s=each("message_s"),
            latency_s=each("latency_s"),
            bandwidth=each("bandwidth"),
            storage=each("storage"),
            free=np.zeros(count),
            slow=np.ones(count),
            links=np.ones(count),
            due_s=np.full(count, FIRST_S),
            work_s=np.full(count, FIRST_S),
            stamp=np.zeros((count, cached), np.int64),
            used=np.zeros(count, np.int64),
            budget=budget,
        )

    def age(self, decay: float) -> None:
        """A step has passed: what was measured before counts less."""
        self.due_s *= decay
        self.work_s *= decay

    def forget(self, device: int) -> None:
        """Its process has died: the cache is empty."""
        self.stamp[device] = 0
        self.used[device] = 0


def _plan_rows(  # type: ignore[no-untyped-def]
    layer, starts, device, chosen, sizes, clock,
    ops, read, storage, slow, due_s, stamp, used, budget, ops_per_row, seconds, rows_of,
):  # fmt: skip
    """What each device has to compute, and what its cache does meanwhile; returns (cache hits, misses).

    seconds, rows_of: [devices], filled.
    """
    experts = starts.size - 1
    seconds[:] = 0
    rows_of[:] = 0
    hits, misses = 0, 0
    for e in range(experts):
        key = layer * experts + e
        for c in range(starts[e], starts[e + 1]):
            n = chosen[c]
            if n == 0:
                continue
            d = device[c]
            rows_of[d] += n
            due = max(sizes[e] / read[d], n * ops_per_row / ops[d])
            due_s[d] += due
            seconds[d] += slow[d] * due
            if budget[d] < 0:
                continue
            if stamp[d, key] > 0:
                hits += 1
            else:
                misses += 1
                seconds[d] += sizes[e] / storage[d]
                while used[d] + sizes[e] > budget[d] and used[d] > 0:  # least recently used goes
                    oldest, when = -1, clock + 1
                    for k in range(stamp.shape[1]):
                        if 0 < stamp[d, k] < when:
                            oldest, when = k, stamp[d, k]
                    if oldest < 0:
                        break
                    stamp[d, oldest] = 0
                    used[d] -= sizes[oldest % experts]
                if used[d] + sizes[e] <= budget[d]:
                    used[d] += sizes[e]
                    stamp[d, key] = clock
            if stamp[d, key] > 0:
                stamp[d, key] = clock
    return hits, misses


def _carry_rows(  # type: ignore[no-untyped-def]
    sent, tokens, seconds, rows_of, message_s, latency_s, bandwidth, free, links, work_s,
    request_bytes, reply_bytes, router_bandwidth, reply_at,
):  # fmt: skip
    """Returns when the last reply is in; changes the nodes' state.

    A message leaves when the ones before it have left the router, in order of devices; a node computes
    messages in order of arrival. All replies share the router's link: the last is in no earlier than the
    first could start plus all bytes at that link's rate, which is exact if it never falls idle.
    reply_at: [devices], filled; 0 for a device that gets nothing.
    """
    reply_at[:] = 0
    leaves, replies, first, last = sent, 0.0, np.inf, sent
    for d in range(rows_of.size):
        if rows_of[d] == 0:
            continue
        request = distinct(tokens, rows_of[d]) * request_bytes
        leaves += request / router_bandwidth
        rate = bandwidth[d] * links[d]
        begin = max(leaves + latency_s[d] + request / rate, free[d])
        free[d] = begin + message_s[d] + seconds[d]
        work_s[d] += seconds[d]
        reply = rows_of[d] * reply_bytes
        replies += reply
        reply_at[d] = free[d] + latency_s[d] + reply / rate
        first = min(first, free[d] + latency_s[d])
        last = max(last, reply_at[d])
    if replies > 0:
        last = max(last, first + replies / router_bandwidth)
    return last


def _distinct_rows(tokens, rows):  # type: ignore[no-untyped-def]
    """A message carries each token once however many of its experts are there: of T tokens n rows touch about
    T (1 − (1 − 1/T)^n) different ones."""
    return tokens * (1 - (1 - 1 / tokens) ** rows) if tokens > 1 else 1.0


distinct: Any = compiled(_distinct_rows)
_plan: Any = compiled(_plan_rows)
_carry: Any = compiled(_carry_rows)


@dataclass(frozen=True, eq=False)
class Planned:
    """What a dispatch asks of each device: seconds of computing and rows, [devices]; overwritten by the next
    dispatch. hits, misses: of the expert caches."""

    seconds: Floats
    rows: Integers
    hits: int
    misses: int


class Dispatcher:
    """Serves dispatches on one fleet. layer_bytes: [experts] int64, the same in every layer."""

    def __init__(self, nodes: Nodes, model: Model, router: Router, layer_bytes: Integers) -> None:
        self.nodes, self._model, self._router, self._sizes = nodes, model, router, layer_bytes
        self._reply_at = np.zeros(len(nodes.free))
        self._seconds = np.zeros(len(nodes.free))
        self._rows = np.zeros(len(nodes.free), np.int64)
        self._clock = 0

    def plan(self, layer: int, copies: Copies, chosen: npt.NDArray[np.int64]) -> Planned:
        """chosen: [copies] rows."""
        self._clock += 1
        nodes = self.nodes
        hits, misses = _plan(
            layer, copies.starts, copies.device, chosen, self._sizes, self._clock,
            nodes.ops, nodes.read, nodes.storage, nodes.slow, nodes.due_s,
            nodes.stamp, nodes.used, nodes.budget, float(self._model.ops_per_row), self._seconds, self._rows,
        )  # fmt: skip
        return Planned(self._seconds, self._rows, hits, misses)

    def carry(self, sent: float, tokens: int, planned: Planned) -> tuple[float, Floats]:
        """When the router has all replies, and each device's, [devices] seconds, 0 where nothing was sent;
        the array is overwritten by the next dispatch. Every device has a machine to itself."""
        nodes = self.nodes
        done = _carry(
            sent, tokens, planned.seconds, planned.rows,
            nodes.message_s, nodes.latency_s, nodes.bandwidth, nodes.free, nodes.links, nodes.work_s,
            float(self._model.request_bytes), float(self._model.reply_bytes), self._router.bandwidth,
            self._reply_at,
        )  # fmt: skip
        return float(done), self._reply_at


Chooser = Callable[[Integers, Copies, Floats, Floats, int], Integers]
"""(rows [experts], copies, speed [devices], backlog [devices], dispatch number) to rows [copies]."""


def chooser(policy: ChoicePolicy) -> Chooser:
    """How the simulator calls a choice policy.

    The policies of cluster.balance.choice are thin over compiled kernels: those are called with copies that
    were listed once per table instead of once per dispatch, which is most of their time at 256 devices. Any
    other policy is called as it is.
    """
    return _COMPILED.get(policy) or _general(policy)


def _least_loaded(rows: Integers, copies: Copies, speed: Floats, backlog: Floats, number: int) -> Integers:
    out = np.empty(copies.device.size, np.int64)
    least_loaded_rows(rows, copies.starts, copies.device, speed, backlog, out)
    return out


def _flow(rows: Integers, copies: Copies, speed: Floats, backlog: Floats, number: int) -> Integers:
    out = np.empty(copies.device.size, np.int64)
    flow_rows(rows, copies.starts, copies.device, speed, backlog, out)
    return out


def _even(rows: Integers, copies: Copies, speed: Floats, backlog: Floats, number: int) -> Integers:
    out = np.empty(copies.device.size, np.int64)
    even_rows(rows, copies.starts, out)
    return out


def _power_of_two(rows: Integers, copies: Copies, speed: Floats, backlog: Floats, number: int) -> Integers:
    out = np.empty(copies.device.size, np.int64)
    power_of_two_rows(rows, copies.starts, copies.device, speed, backlog, np.uint64(number), out)
    return out


_COMPILED: dict[Any, Chooser] = {
    choice.least_loaded: _least_loaded,
    choice.flow: _flow,
    choice.even_split: _even,
    choice.power_of_two: _power_of_two,
}


def _general(policy: ChoicePolicy) -> Chooser:
    def choose(rows: Integers, copies: Copies, speed: Floats, backlog: Floats, number: int) -> Integers:
        owner = np.repeat(np.arange(rows.size), np.diff(copies.starts))
        hosts = np.zeros((rows.size, copies.devices), np.bool_)
        hosts[owner, copies.device] = True
        chosen = policy(Batch(rows, hosts, speed, backlog))
        return np.ascontiguousarray(chosen[owner, copies.device], np.int64)

    return choose
