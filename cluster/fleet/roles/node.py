"""An expert node as a process: the shard that the table gives it, held within its budget, served over TCP."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from cluster.balance.placement import PlacementTable
from cluster.compute.threads import Workers
from cluster.config import NodeConfig
from cluster.controller.members import NO_TABLE, Role
from cluster.dispatch.handshake import Identity
from cluster.errors import CannotStore, CorruptBlob, IncompleteLibrary, MoemeshError, RequestAborted
from cluster.expert.build import build_compute
from cluster.expert.node import ExpertCompute, ExpertNode
from cluster.expert.store import ExpertStore
from cluster.fleet.control import ControlledRole, View
from cluster.fleet.roles.process import Place, begin, load_kernels
from cluster.fleet.roles.shard import Shard
from cluster.fleet.roles.supply import Supply, open_library, peers_of
from cluster.fleet.roles.wire import wire_shape
from cluster.types import ExpertId, NodeId

log = logging.getLogger(__name__)

RETRY_S = 5.0
"""After this a node tries again to get what it could not get."""

TROUBLE_S = 10.0
"""For so long the controller is told of it, and gives the node nothing more."""


class NodeRole(ControlledRole):
    """Loads what the table gives it; the blobs are checked before their first use (ExpertStore). Those that
    its library lacks it gets from others first, while it serves what it has (Supply).

    What a next table adds is loaded beside what is served, as a second generation of the store: mapped, both
    refer to the same memory; an arena begins anew and is filled by what is asked for. What the table does not
    give it goes when no router uses an older table.
    """

    role = Role.NODE

    def __init__(
        self, place: Place, config: NodeConfig, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """clock: by which it tells routers how long its calls took."""
        self._place, self._config, self._clock = place, config, clock
        self._restarts = begin(place)
        self._workers: Workers | None = None
        self._shard = Shard()
        self._load_speed = self._load_s = 0.0
        self._node: ExpertNode | None = None
        self._supply: Supply | None = None
        self._applied = NO_TABLE
        self._trouble: tuple[float, MoemeshError] | None = None
        super().__init__(place.name, place.controller)

    def build(self) -> None:
        identity = Identity(self.role.value, self.name, self.incarnation)
        self._library = open_library(self._place.library, identity, self._config.hub, self._stopping.wait)
        identity = replace(identity, library=self._library.digest)
        self._supply = Supply(self._library, self._place.variant, identity, self._config)
        self._supply.start()  # peers may need it before this node can compute
        load_kernels()
        self._workers = Workers(self._config.threads)  # runs a kernel: after they are there
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
        if view.table is None:
            return NO_TABLE
        self.again_s = None
        try:
            self._follow_table(view, view.table)
        except RequestAborted as error:
            log.info("%s", error)
        except (IncompleteLibrary, CannotStore, CorruptBlob) as error:
            log.error("%s goes on with what it has: %s", self.name, error)
            self._trouble = time.monotonic(), error
            self.again_s = RETRY_S
        return self._applied

    def _follow_table(self, view: View, table: PlacementTable) -> None:
        assert self._node is not None, "build() comes first"
        mine = frozenset(table.experts_of(NodeId(self.name)))
        if not mine <= self._shard.experts or not self._node.ready:
            self._load_afresh(mine, view)
        elif view.settled and mine != self._shard.experts and view.next is None:
            self._node.hold(table.version, mine)
            self._change(mine, view)
        self._node.hold(table.version, self._shard.experts)
        self._applied = table.epoch, table.version
        if view.next is not None:
            self._prepare(table, view.next, view)
            self._node.hold(table.version, self._shard.experts)

    def _prepare(self, table: PlacementTable, following: PlacementTable, view: View) -> None:
        """Hold what both tables give this node, and nothing else: old copies make room for new ones."""
        assert self._node is not None, "build() comes first"
        name = NodeId(self.name)
        mine = frozenset(table.experts_of(name))
        wanted = mine | frozenset(following.experts_of(name))
        self._fetch(wanted, view, 1.0 if view.mending else self._config.fetch_share)
        if not self._shard.experts <= wanted:
            self._node.hold(table.version, mine)
            self._change(mine, view)
        if wanted != self._shard.experts:
            self._change(wanted, view)
        self.prepared = following.epoch, following.version

    def _load_afresh(self, experts: frozenset[ExpertId], view: View) -> None:
        """The memory is given back first: nobody has said that both fit."""
        assert self._node is not None, "build() comes first"
        self._fetch(experts, view, 1.0)
        self._node.hold(0, ())
        self._shard.clear()
        self._change(experts, view)

    def _fetch(self, experts: frozenset[ExpertId], view: View, share: float) -> None:
        """Have their blobs on disk. Raises what Supply.get does; RequestAborted once another view asks for
        something else."""
        assert self._supply is not None, "build() comes first"

        def peers(expert: ExpertId) -> list[str]:
            return peers_of(expert, self._view, self.name, self._config.hub)

        def wait(seconds: float) -> bool:
            return self._stopping.wait(seconds) or _asked(self._view) != _asked(view)

        self._supply.get(experts, peers, share, wait)
        self._trouble = None

    def _change(self, experts: frozenset[ExpertId], view: View) -> None:
        """Compute with these from now on. What is found wrong on disk is got from others, whose bytes are
        right by their digests; where there are no others it raises CorruptBlob, as it does for a second."""
        assert self._supply is not None, "build() comes first"
        try:
            self._load(experts)
        except CorruptBlob as error:
            lacking = experts - self._shard.experts
            if not self._has_peers(view) or not self._supply.distrust(lacking):
                raise
            log.warning("%s asks others: %s", self.name, error)
            self._fetch(experts, view, 1.0)
            self._load(experts)

    def _has_peers(self, view: View) -> bool:
        return bool(self._config.hub) or any(name != self.name for name in view.nodes)

    def _load(self, experts: frozenset[ExpertId]) -> None:
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

    @property
    def table_in_use(self) -> tuple[int, int]:
        """Also while it gets what a next table adds."""
        return self._applied

    def trouble(self) -> MoemeshError | None:
        """For a while after the last failure: it is given nothing meanwhile, and then it is tried again."""
        found = self._trouble
        return None if found is None or time.monotonic() - found[0] > TROUBLE_S else found[1]

    def stats(self) -> dict[str, Any]:
        node = {} if self._node is None else self._node.stats()
        speed = self._load_speed
        return node | {
            "restarts": self._restarts,
            "memory_bytes": self._config.memory_bytes,
            "load_bytes_per_s": speed if self._supply is None else self._supply.load_speed(speed),
            "load_s": self._load_s,
            "resident_bytes": self._shard.resident_bytes,
            "held": len(self._shard.experts),
            "blobs": {} if self._supply is None else self._supply.stats(),
            **self._shard.cache,
        }

    def close(self) -> None:
        if self._supply is not None:
            self._supply.shutdown()
        if self._node is not None:
            self._node.shutdown()
        self._shard.clear()
        if self._workers is not None:
            self._workers.close()


def _asked(view: View) -> tuple[tuple[int, int], ...]:
    """(epoch, version) of the tables that a view wants loaded."""
    return tuple((table.epoch, table.version) for table in (view.table, view.next) if table is not None)
