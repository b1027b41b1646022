"""The event loop: routers that dispatch layer by layer, nodes with queues, moves, failures.

Events lie on one heap, ordered by time and then by when they were made, so that a run follows from its
inputs.

    step begins ──► layer 0 ──► layer 1 ──► … ──► step ends ──► the controller looks
    a device fails ──► its router notices after `detect_s` ──► the layer is sent again ──► experts are placed
    anew
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.balance.choice import ChoicePolicy
from cluster.balance.fleet import Floats, Integers
from cluster.balance.problem import PlacementPolicy
from cluster.errors import ConfigError, Unavailable
from cluster.experiments.sim.control import Control, Controller
from cluster.experiments.sim.dispatch import Dispatcher, Nodes, Planned, chooser
from cluster.experiments.sim.inputs import Fault, Fleet, Work
from cluster.experiments.sim.model import Model
from cluster.experiments.sim.moves import Moves
from cluster.experiments.sim.outcome import Outcome, balancedness
from cluster.experiments.sim.shared import SharedCores
from cluster.experiments.sim.table import Table

DETECT_S = 1.0
"""After this a router takes a silent node for dead."""

SPEED_HALF_LIFE = 50.0
"""Steps of the window in which devices' speeds are measured."""


def simulate(
    work: Work,
    model: Model,
    fleet: Fleet,
    placement: PlacementPolicy,
    choice: ChoicePolicy,
    control: Control | None = None,
) -> Outcome:
    """Run all steps. Raises ConfigError for work without rows, what the policies raise, and Unavailable where
    experts are lost for good."""
    if not work.rows.any():
        raise ConfigError("there is nothing to simulate: the trace is empty")
    return _Simulation(work, model, fleet, placement, choice, control or Control()).run()


@dataclass(eq=False)
class _RouterState:
    """Where a router is. attempt: makes events of a dispatch that was given up void. awaited: [devices] when
    each reply is in, infinity while nobody can tell, 0 where none is due. sent: [devices] rows of the
    dispatch. lost: a reply will never come, so that the layer is sent again when that is noticed. stalled: an
    expert that it needs is nowhere yet."""

    number: int
    rows: npt.NDArray[np.int64]
    awaited: Floats
    sent: Integers
    tokens: int = 0
    step: int = 0
    layer: int = 0
    began: float = 0.0
    ended: float = 0.0
    attempt: int = 0
    lost: bool = False
    stalled: bool = False


class _Simulation:
    def __init__(
        self,
        work: Work,
        model: Model,
        fleet: Fleet,
        placement: PlacementPolicy,
        choice: ChoicePolicy,
        control: Control,
    ) -> None:
        steps, self.layers, experts = work.rows.shape
        count = len(fleet.devices)
        self.work, self.fleet, self.choose = work, fleet, chooser(choice)
        sizes = np.full((self.layers, experts), model.expert_bytes)
        rows = float(work.rows[work.rows > 0].mean()) / fleet.routers
        self.devices = fleet.for_balance(model, rows)
        first = work.rows[: control.history].mean(axis=0) if control.history else np.ones(sizes.shape)
        library = min(device.storage for device in fleet.devices) if fleet.library else 0.0
        self.controller = Controller(placement, control, sizes, self.devices, library, first)
        self.table = Table(self.controller.placement)
        self.compute_s = np.array([device.row_s(model, rows) for device in fleet.devices])
        self.carry_s = np.array([device.carry_s(model) for device in fleet.devices])
        resident = np.full(count, -1, np.int64) if fleet.resident is None else fleet.resident
        self.nodes = Nodes.of(list(fleet.devices), self.layers * experts, resident)
        self.dispatcher = Dispatcher(self.nodes, model, fleet.router, sizes[0])
        self.shared = SharedCores(fleet, model, self.nodes, self) if fleet.shares_cores else None
        self.moves = Moves(self.table, self.nodes, self.devices, control.share, library, self)
        self.routers = [
            _RouterState(number, work.rows[0], np.zeros(count), np.zeros(count, np.int64))
            for number in range(fleet.routers)
        ]
        self.open: dict[int, tuple[Floats, int]] = {}
        self.step_s, self.balance, self.moved = np.zeros(steps), np.zeros(steps), np.zeros(steps, np.int64)
        self.heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self.order = itertools.count()
        self.down: set[int] = set()
        self.now = 0.0
        self.dispatches = self.rows = self.hits = self.misses = self.retries = 0
        self.running = fleet.routers

    def at(self, time: float, do: Callable[..., None], *arguments: Any) -> None:
        """Call `do` at a time that is not past."""
        heapq.heappush(self.heap, (time, next(self.order), do, arguments))

    def run(self) -> Outcome:
        for fault in self.fleet.faults:
            self.at(fault.at, self._fault, fault)
        for router in self.routers:
            self._begin(router, 0)
        while self.running:
            if not self.heap:
                raise Unavailable("experts are lost for good: no live device has or can load them")
            self.now, _, do, arguments = heapq.heappop(self.heap)
            do(*arguments)
        return Outcome(
            self.step_s / len(self.routers),
            self.balance,
            self.moved,
            max(router.ended for router in self.routers),
            self.rows,
            self.hits,
            self.misses,
            tuple(self.controller.alarms),
            self.retries,
        )

    def _begin(self, router: _RouterState, step: int) -> None:
        """A router begins a step with its share of the rows; what cannot be shared goes round."""
        if step == len(self.work.rows):
            router.ended = self.now
            self.running -= 1
            return
        rows, count = self.work.rows[step], len(self.routers)
        turn = (router.number + step) % count
        router.rows = rows if count == 1 else (rows + turn) // count
        router.tokens = max(1, int(self.work.tokens[step]) // count)
        router.step, router.layer, router.began = step, 0, self.now
        self._trunk(router)

    def _trunk(self, router: _RouterState) -> None:
        costs = self.fleet.router
        self._compute(
            router, costs.layer_s + costs.row_s * router.tokens, self._dispatch, router, router.attempt
        )

    def _compute(
        self, router: _RouterState, seconds: float, do: Callable[..., None], *arguments: Any
    ) -> None:
        """Call `do` when a router has computed for so long."""
        if self.shared is None:
            self.at(self.now + seconds, do, *arguments)
        else:
            self.shared.compute(router.number, seconds, do, *arguments)

    def _dispatch(self, router: _RouterState, attempt: int) -> None:
        if attempt != router.attempt:
            return
        layer, rows = router.layer, router.rows[router.layer]
        if self.table.missing(layer, rows):
            router.stalled = True
            return
        copies = self.table.copies(layer)
        self.dispatches += 1
        chosen = self.choose(rows, copies, self._speed(), self._backlog(), self.dispatches)
        planned = self.dispatcher.plan(layer, copies, chosen)
        self.hits += planned.hits
        self.misses += planned.misses
        router.sent[:] = planned.rows
        router.lost = any(planned.rows[device] for device in self.down)
        if self.shared is None:
            done, router.awaited[:] = self.dispatcher.carry(self.now, router.tokens, planned)
            if not router.lost:
                self.at(done, self._replied, router, attempt)
        else:
            self._dispatch_shared(self.shared, router, planned)

    def _dispatch_shared(self, shared: SharedCores, router: _RouterState, planned: Planned) -> None:
        attempt = router.attempt

        def replied(device: int) -> None:
            if attempt == router.attempt:
                router.awaited[device] = 0

        router.awaited[:] = np.where(planned.rows > 0, np.inf, 0)
        done = partial(self._replied, router, attempt)
        shared.dispatch(router.number, router.tokens, planned, replied, done)

    def _backlog(self) -> Floats:
        """[devices] seconds of computing that each has before it."""
        if self.shared is not None:
            return self.shared.backlog()
        backlog: Floats = np.maximum(self.nodes.free - self.now, 0)
        return backlog

    def _speed(self) -> Floats:
        """[devices] rows per second as measured: computing by how much longer than the roofline says it has
        taken, and the link."""
        slower = self.nodes.work_s / self.nodes.due_s
        speed: Floats = 1 / (self.compute_s * slower + self.carry_s)
        return speed

    def _replied(self, router: _RouterState, attempt: int) -> None:
        if attempt != router.attempt:
            return
        self._loads(router.step)[router.layer] += router.sent
        self.rows += int(router.sent.sum())
        router.awaited[:] = 0
        router.layer += 1
        if router.layer < self.layers:
            self._trunk(router)
        else:
            self._compute(router, self.fleet.router.step_s, self._ended, router)

    def _loads(self, step: int) -> Floats:
        """[layers, devices] rows of a step that have been computed so far."""
        if step not in self.open:
            self.open[step] = (np.zeros((self.layers, len(self.devices))), len(self.routers))
        return self.open[step][0]

    def _ended(self, router: _RouterState) -> None:
        step = router.step
        self.step_s[step] += self.now - router.began
        loads, left = self._loads(step), self.open[step][1] - 1
        self.open[step] = (loads, left)
        if not left:
            del self.open[step]
            self._step_over(step, loads)
        self._begin(router, step + 1)

    def _step_over(self, step: int, loads: Floats) -> None:
        """All routers have done this step."""
        actual = 1 / (self.compute_s * self.nodes.slow + self.carry_s)
        self.balance[step] = balancedness(loads, np.where(self.table.alive, actual, 0))
        self.nodes.age(0.5 ** (1 / SPEED_HALF_LIFE))
        if self.controller.observe(self.work.rows[step], int(self.work.tokens[step])):
            self._place()

    def _place(self) -> None:
        """One migration at a time: while one is under way the table is not what a decision would start
        from.
        """
        if self.moves.active:
            return
        gone = {self.devices.names[device] for device in np.flatnonzero(~self.table.alive)}
        migration = self.controller.decide(self.table.placement, self._speed(), gone)
        if migration is not None:
            self.moves.start(migration)

    def copied(self, size: int) -> None:
        """A move has ended: counted with the step that the first router is in; who waited for it goes on."""
        self.moved[min(self.routers[0].step, len(self.moved) - 1)] += size
        for router in self.routers:
            if router.stalled:
                self._again(router)

    def _fault(self, fault: Fault) -> None:
        device = fault.device
        if fault.kind == "slow":
            self.nodes.slow[device] = fault.factor
        elif fault.kind == "fail" and device not in self.down:
            self.down.add(device)
            self.nodes.forget(device)
            if self.shared is not None:
                self.shared.fail(device)
            for router in self.routers:
                if router.awaited[device] > self.now:
                    router.attempt += 1
                    router.lost = True
            self.at(self.now + DETECT_S, self._detected, device)
        elif fault.kind == "return" and device in self.down:
            self.down.discard(device)
            self.nodes.free[device] = self.now
            if self.shared is not None:
                self.shared.come_back(device)
            self.table.set_alive(device, True)
            self._place()
            self._resend()

    def _detected(self, device: int) -> None:
        """The device leaves the table; its experts are placed anew; what was sent to it goes elsewhere."""
        if device in self.down:
            self.table.set_alive(device, False)
            self.table.forget(device)
            self.moves.abort()
            self._place()
            self._resend()

    def _resend(self) -> None:
        for router in self.routers:
            if router.lost or router.stalled:
                self._again(router)

    def _again(self, router: _RouterState) -> None:
        router.attempt += 1
        router.lost = router.stalled = False
        router.awaited[:] = 0
        self.retries += 1
        self.at(self.now, self._dispatch, router, router.attempt)
