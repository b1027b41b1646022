"""The experts that a node computes with at the moment."""

from __future__ import annotations

import threading
from typing import Any

from cluster.dispatch.transport import Array
from cluster.errors import Overloaded
from cluster.expert.node import ExpertCompute
from cluster.expert.store import ExpertStore
from cluster.types import ExpertId


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
