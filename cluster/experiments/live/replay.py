"""A router whose steps are a trace's: what gates once chose goes through the real exchange, layer by layer.

There is no trunk; rows are drawn from a seed.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cluster.balance.choice import ChoicePolicy, flow
from cluster.balance.fleet import Floats
from cluster.balance.placement import PlacementTable
from cluster.controller.members import NO_TABLE, Role
from cluster.dispatch.exchange import Exchange
from cluster.dispatch.handshake import Identity
from cluster.dispatch.transport import ExpertCall
from cluster.errors import ConfigError, StartFailed
from cluster.experiments.routing import Trace
from cluster.experiments.sim.fit import Measurement
from cluster.fleet.control import ControlledRole, View
from cluster.fleet.roles.process import Place
from cluster.fleet.roles.wire import wire_shape
from cluster.library.reader import Library
from cluster.types import NodeId
from kernels import warm

CONNECT_S = 30.0


@dataclass(frozen=True, eq=False)
class Replayed:
    """step_s: [steps] seconds of each. layer_s: seconds a layer took beside its dispatch, mean. send_s,
    take_s: core-seconds that a message cost the router, and that its reply did, mean. messages: by node, what
    each of its messages cost; none where experts have several copies, since what each computed cannot be
    told."""

    step_s: Floats
    layer_s: float
    send_s: float
    take_s: float
    messages: Mapping[NodeId, list[Measurement]]


class ReplayRouter(ControlledRole):
    """A router for the controller and its nodes. `connect`, `run` and `shutdown` are for one thread."""

    role = Role.ROUTER

    def __init__(
        self,
        place: Place,
        choice: ChoicePolicy = flow,
        clock: Callable[[], float] = time.perf_counter,
        core_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        """core_clock: core-seconds of the calling thread."""
        self._place, self._choice, self._clock, self._core_clock = place, choice, clock, core_clock
        self._exchange: Exchange | None = None
        self._opened = threading.Event()
        self._steps = 0
        super().__init__(place.name, place.controller)

    def build(self) -> None:
        warm.compile_all()
        self._library = Library.open(self._place.library)
        self._shape = wire_shape(self._library, self._place.variant)

    def apply(self, view: View) -> tuple[int, int]:
        if view.table is None or not (view.active or self._exchange):
            return NO_TABLE
        addresses = {node: str(view.nodes[node]["address"]) for node in view.table.nodes}
        if self._exchange is None:
            identity = Identity(self.role.value, self.name, self.incarnation, self._library.digest)
            self._exchange = Exchange(identity, self._shape, view.table, addresses, choice=self._choice)
            self._opened.set()
        else:
            self._exchange.update(view.table, addresses)
        return view.table.epoch, view.table.version

    @property
    def table_in_use(self) -> tuple[int, int]:
        return NO_TABLE if self._exchange is None else self._exchange.acknowledged

    @property
    def ready(self) -> bool:
        return self._opened.is_set()

    def stats(self) -> dict[str, Any]:
        return {"steps": self._steps}

    def load(self) -> dict[str, Any] | None:
        return None if self._exchange is None else self._exchange.load.stats().to_wire()

    def close(self) -> None:
        if self._exchange is not None:
            self._exchange.close()

    def connect(self) -> Exchange:
        """The exchange, connected to every node. Raises StartFailed and what connecting raises."""
        if not self._opened.wait(CONNECT_S):
            raise StartFailed(f"no table is active after {CONNECT_S:g} s")
        assert self._exchange is not None, "it was opened"
        self._exchange.connect(CONNECT_S)
        return self._exchange

    def warm(self, trace: Trace, seconds: float) -> None:
        """Run steps of the trace, again and again, for about so long. Raises as `run`."""
        until = self._clock() + seconds
        while self._clock() < until:
            self.run(trace)

    def run(self, trace: Trace, seed: int = 0) -> Replayed:
        """Every step of the trace, one after the other. Raises ConfigError for a trace of another model, and
        what the exchange raises."""
        spec, header = self._library.spec, trace.header
        if (header.experts, header.top_k, header.layers) != (spec.experts, spec.top_k, spec.sparse_layers):
            raise ConfigError(f"a trace of {header} does not fit {self._library.name}")
        exchange = self.connect()
        rng, clock, hidden = np.random.default_rng(seed), self._clock, self._shape.hidden
        times: list[float] = []
        costs, messages_before = np.zeros(3), exchange.counters.messages_out
        known: dict[NodeId, list[Measurement]] = {node: [] for node in exchange.table.nodes}
        messages = defaultdict(list, known)
        for part in trace.step_slices():
            self._steps += 1
            count = part.stop - part.start
            rows = rng.integers(-127, 128, (count, hidden)).astype(np.int8)
            scales = np.full(count, 0.01, np.float32)
            ids = np.ascontiguousarray(trace.ids[part].transpose(1, 0, 2), np.int32)
            table, seen = exchange.table, []  # may have changed since the last step, nodes and all
            begin = clock()
            for column, layer in enumerate(header.layers):
                cost = self._dispatch(exchange, ExpertCall(self._steps, layer, 0, ids[column], rows, scales))
                seen.append((column, layer, cost, exchange.loads()))
            times.append(clock() - begin)
            for column, layer, cost, loads in seen:
                costs += cost
                owners = _owners(table, layer)
                if owners is not None and loads.keys() >= set(table.nodes):
                    self._count(messages, ids[column], table.nodes, owners, cost[0], loads)
        called, sending, taking = costs.tolist()
        sent = exchange.counters.messages_out - messages_before
        layer_s = (sum(times) - called) / (len(times) * len(header.layers))
        return Replayed(np.array(times), layer_s, sending / sent, taking / sent, messages)

    def _dispatch(self, exchange: Exchange, call: ExpertCall) -> tuple[float, float, float]:
        """(seconds, core-seconds of sending, core-seconds of taking in) of one call."""
        began, core = self._clock(), self._core_clock()
        exchange.send(call)
        sent = self._core_clock()
        exchange.wait(call.step, call.layer, call.micro_batch)
        return self._clock() - began, sent - core, self._core_clock() - sent

    def _count(
        self,
        messages: dict[NodeId, list[Measurement]],
        ids: npt.NDArray[np.int32],
        nodes: Sequence[NodeId],
        owners: npt.NDArray[np.int32],
        seconds: float,
        loads: Mapping[NodeId, tuple[int, int]],
    ) -> None:
        """What a dispatch cost each node. Only the last reply's arrival is known: what the dispatch took
        beside its longest service is taken for everybody's time on the link."""
        mine = owners[ids]
        asked = {node: place for place, node in enumerate(nodes) if (mine == place).any()}
        service = {node: max(loads[node][1], 1) * 1e-6 for node in asked}
        link_s = max(seconds - max(service.values()), 1e-6)
        for node, place in asked.items():
            counts = np.bincount(ids[mine == place])
            touched = int((mine == place).any(axis=1).sum())
            size = touched * self._shape.row_bytes + int(counts.sum()) * self._shape.result_bytes
            rows = tuple(counts[counts > 0].tolist())
            messages[node].append(Measurement(rows, service[node], size, link_s))


def _owners(table: PlacementTable, layer: int) -> npt.NDArray[np.int32] | None:
    """None where experts of the layer have several copies."""
    several = any(len(holders) > 1 for holders in table.replicas[layer])
    return None if several else table.owners(layer)
