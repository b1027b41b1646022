"""Dispatches of a fleet whose processes share cores: every message is an event.

    router: send, send, … ──► link ──► device: waits, computes ──► link ──► router: takes in, takes in, …

Where each process has a core of its own and a router's messages cost it nothing, times are those of
dispatch.py, which tells all of a dispatch's at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.balance.fleet import Floats, Integers
from cluster.experiments.sim.cores import Clock, Cores, Processes
from cluster.experiments.sim.dispatch import Nodes, Planned, distinct
from cluster.experiments.sim.inputs import Fleet
from cluster.experiments.sim.model import Model


@dataclass(eq=False)
class _Dispatch:
    """left: replies that are not taken in. first: when the first of them was sent, seconds; bytes: of all."""

    router: int
    replied: Callable[[int], None]
    done: Callable[[], None]
    left: int
    bytes: float
    first: float = np.inf


@dataclass(eq=False)
class _Message:
    """work: core-seconds of computing, beside what every message costs the device."""

    dispatch: _Dispatch
    device: int
    request: float
    reply: float
    work: float
    arrived: float = 0.0


class SharedCores:
    """Devices and routers as processes on hosts; those on none have a machine to themselves."""

    def __init__(self, fleet: Fleet, model: Model, nodes: Nodes, clock: Clock) -> None:
        self._model, self._router, self._nodes, self._clock = model, fleet.router, nodes, clock
        devices = len(fleet.devices)
        machines = [Cores(host.cores) for host in fleet.hosts]
        machine_of = [-1] * (devices + fleet.routers)
        for number, host in enumerate(fleet.hosts):
            for process in (*host.devices, *(range(devices, len(machine_of)) if host.routers else ())):
                machine_of[process] = number
        for process, machine in enumerate(machine_of):
            if machine < 0:
                machine_of[process] = len(machines)
                machines.append(Cores(1))
        self._processes = Processes(machines, machine_of, clock)
        self._first_router = devices
        self._leaves = np.zeros(fleet.routers)
        self._down: set[int] = set()

    def compute(self, router: int, seconds: float, do: Callable[..., None], *arguments: Any) -> None:
        """A router computes for so many core-seconds, then `do` is called."""
        self._processes.run(self._first_router + router, seconds, do, *arguments)

    def backlog(self) -> Floats:
        """[devices] core-seconds that each has before it."""
        left = [self._processes.left(device) for device in range(self._first_router)]
        return np.array(left, np.float64)

    def dispatch(
        self,
        router: int,
        tokens: int,
        planned: Planned,
        replied: Callable[[int], None],
        done: Callable[[], None],
    ) -> None:
        """Send every device its rows, in order of devices. replied: called with each device whose reply is
        in; done: when the router has taken in all."""
        devices: Integers = np.flatnonzero(planned.rows)
        replies = planned.rows[devices] * float(self._model.reply_bytes)
        dispatch = _Dispatch(router, replied, done, len(devices), float(replies.sum()))
        if not len(devices):
            self.compute(router, 0.0, done)
        for device, reply in zip(devices.tolist(), replies.tolist(), strict=True):
            rows = int(planned.rows[device])
            request = float(distinct(tokens, rows)) * self._model.request_bytes
            message = _Message(dispatch, device, request, reply, float(planned.seconds[device]))
            self.compute(router, self._router.send_s, self._send, message)

    def fail(self, device: int) -> None:
        """What it had before it is gone, and what is on its way to it arrives nowhere."""
        self._down.add(device)
        self._processes.stop(device)

    def come_back(self, device: int) -> None:
        self._down.discard(device)

    def _send(self, message: _Message) -> None:
        router, now = message.dispatch.router, self._clock.now
        self._leaves[router] = max(self._leaves[router], now) + message.request / self._router.bandwidth
        travels = self._nodes.latency_s[message.device] + message.request / self._rate(message.device)
        self._clock.at(float(self._leaves[router] + travels), self._arrive, message)

    def _rate(self, device: int) -> float:
        """Bytes per second of a device's link that moves leave to messages."""
        return float(self._nodes.bandwidth[device] * self._nodes.links[device])

    def _arrive(self, message: _Message) -> None:
        if message.device in self._down:
            return
        message.arrived = self._clock.now
        work = message.work + float(self._nodes.message_s[message.device])
        self._processes.run(message.device, work, self._computed, message)

    def _computed(self, message: _Message) -> None:
        """The reply leaves. What the message took of the clock counts as the device's speed, as a node tells
        it to its router: a device whose host is crowded is a slow one."""
        device, now, nodes, dispatch = message.device, self._clock.now, self._nodes, message.dispatch
        took = now - max(message.arrived, float(nodes.free[device]))
        work = message.work + float(nodes.message_s[device])
        nodes.work_s[device] += message.work * (took / work if work else 1.0)
        nodes.free[device] = now
        latency = float(nodes.latency_s[device])
        dispatch.first = min(dispatch.first, now + latency)
        self._clock.at(now + latency + message.reply / self._rate(device), self._reply, message)

    def _reply(self, message: _Message) -> None:
        message.dispatch.replied(message.device)
        self.compute(message.dispatch.router, self._router.take_s, self._taken, message.dispatch)

    def _taken(self, dispatch: _Dispatch) -> None:
        dispatch.left -= 1
        if not dispatch.left:
            through = dispatch.first + dispatch.bytes / self._router.bandwidth
            self._clock.at(max(self._clock.now, through), dispatch.done)
