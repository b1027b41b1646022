"""An expert node as a process: the shard that the table gives it, held within its budget, served over TCP."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from cluster.balance.placement import PlacementTable
from cluster.compute.threads import Workers
from cluster.config import NodeConfig
from cluster.controller.members import NO_TABLE, Role
from cluster.dispatch.transport import Array
from cluster.errors import Overloaded
from cluster.expert.build import build_compute
from cluster.expert.node import ExpertCompute, ExpertNode
from cluster.expert.store import ExpertStore
from cluster.fleet.control import ControlledRole, View
from cluster.fleet.roles.process import Place, count_restarts, load_kernels, log_to_file
from cluster.fleet.roles.wire import wire_shape
from cluster.library.bundled import open_model
from cluster.types import ExpertId, NodeId


class Shard:
    """The experts of the moment, which may be exchanged while the node serves."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._compute: ExpertCompute | None = None
        self._store: ExpertStore | None = None

    def run(self, layer: int, counts: Array, experts: Array, rows: Array, scales: Array) -> Array:
        """As `ExpertCompute.run`. While there is nothing it raises Overloaded: routers ask again later."""
        with self._lock:
            if self._compute is None:
                raise Overloaded("the node is loading its experts")
            return self._compute.run(layer, counts, experts, rows, scales)

    def clear(self) -> None:
        """Give the memory back, once a running call has ended. Before new experts are loaded: the budget
        never holds two shards."""
        with self._lock:
            if self._store is not None:
                self._store.close()
            self._compute = self._store = None

    def put(self, store: ExpertStore, compute: ExpertCompute) -> None:
        """Compute with these from the next call on; a call waits for no more than that."""
        with self._lock:
            before, self._store, self._compute = self._store, store, compute
        if before is not None:
            before.close()

    @property
    def experts(self) -> frozenset[ExpertId]:
        """Those that it holds, resident or not."""
        return frozenset() if self._store is None else frozenset(self._store.experts)

    @property
    def resident_bytes(self) -> int:
        store = self._store
        return 0 if store is None else store.resident_bytes

    @property
    def cache(self) -> dict[str, Any]:
        """How the experts lie in memory, and how often they had to be read."""
        store = self._store
        if store is None:
            return {}
        return {
            "mapped": store.mapped,
            "hits": store.hits,
            "misses": store.misses,
            "evictions": store.evictions,
        }


class NodeRole(ControlledRole):
    """Loads what the table gives it; the blobs are checked before their first use (ExpertStore).

    What a next table adds is loaded beside what is served, as a second generation of the store: mapped, both
    refer to the same memory; an arena begins anew and is filled by what is asked for. What the table does not
    give it goes when no router uses an older table.
    """

    role = Role.NODE

    def __init__(
        self, place: Place, config: NodeConfig, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """clock: by which it tells routers how long its calls took."""
        log_to_file(place.logs, place.name, place.log_format)
        self._place, self._config, self._clock = place, config, clock
        self._restarts = count_restarts(place.logs, place.name)
        self._workers: Workers | None = None
        self._shard = Shard()
        self._load_speed = self._load_s = 0.0
        self._node: ExpertNode | None = None
        super().__init__(place.name, place.controller)

    def build(self) -> None:
        load_kernels()
        self._workers = Workers(self._config.threads)  # runs a kernel: after they are there
        self._library = open_model(self._place.library)
        node = ExpertNode(
            self._shard,
            wire_shape(self._library, self._place.variant),
            node_id=self.name,
            library=self._library.digest,
            incarnation=self.incarnation,
            host=self._config.host,
            port=self._place.port,
            clock=self._clock,
        )
        self.address = node.start()
        self._node = node

    def apply(self, view: View) -> tuple[int, int]:
        assert self._node is not None, "build() comes first"
        if view.table is None:
            return NO_TABLE
        mine = frozenset(view.table.experts_of(NodeId(self.name)))
        if not mine <= self._shard.experts or not self._node.ready:
            self._load_afresh(mine)
        elif view.settled and mine != self._shard.experts and view.next is None:
            self._node.hold(view.table.version, mine)
            self._change(mine)
        if view.next is not None:
            self._prepare(view.table, view.next)
        self._node.hold(view.table.version, self._shard.experts)
        return view.table.epoch, view.table.version

    def _prepare(self, table: PlacementTable, following: PlacementTable) -> None:
        """Hold what both tables give this node, and nothing else: old copies make room for new ones."""
        assert self._node is not None, "build() comes first"
        name = NodeId(self.name)
        mine = frozenset(table.experts_of(name))
        wanted = mine | frozenset(following.experts_of(name))
        if not self._shard.experts <= wanted:
            self._node.hold(table.version, mine)
            self._change(mine)
        if wanted != self._shard.experts:
            self._change(wanted)
        self.prepared = following.epoch, following.version

    def _load_afresh(self, experts: frozenset[ExpertId]) -> None:
        """The memory is given back first: nobody has said that both fit."""
        assert self._node is not None, "build() comes first"
        self._node.hold(0, ())
        self._shard.clear()
        self._change(experts)

    def _change(self, experts: frozenset[ExpertId]) -> None:
        assert self._workers is not None, "build() comes first"
        begin, held = time.monotonic(), self._shard.experts
        budget = self._config.memory_bytes
        store = ExpertStore(self._library, self._place.variant, experts, budget, checked=held)
        self._shard.put(store, self.compute(store, self._workers))
        loaded = sum(store.bytes_of(expert) for expert in experts - held)
        if loaded:
            self._load_s = time.monotonic() - begin
        if store.mapped and loaded:
            self._load_speed = loaded / max(self._load_s, 1e-6)

    def compute(self, store: ExpertStore, workers: Workers) -> ExpertCompute:
        """What runs the experts of `store`; an experiment may put something else in between."""
        return build_compute(self._library, store, workers)

    @property
    def ready(self) -> bool:
        return self._node is not None and self._node.ready

    def stats(self) -> dict[str, Any]:
        node = {} if self._node is None else self._node.stats()
        return node | {
            "restarts": self._restarts,
            "memory_bytes": self._config.memory_bytes,
            "load_bytes_per_s": self._load_speed,
            "load_s": self._load_s,
            "resident_bytes": self._shard.resident_bytes,
            "held": len(self._shard.experts),
            **self._shard.cache,
        }

    def close(self) -> None:
        if self._node is not None:
            self._node.shutdown()
        self._shard.clear()
        if self._workers is not None:
            self._workers.close()
