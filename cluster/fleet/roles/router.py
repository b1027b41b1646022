"""A router as a process: the trunk of a library, an exchange with the nodes of the table, an engine."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from cluster.balance.placement import PlacementTable
from cluster.balance.policies import resolve
from cluster.compute.threads import Workers
from cluster.config import EngineConfig
from cluster.controller.members import NO_TABLE, Role
from cluster.dispatch.exchange import Exchange
from cluster.dispatch.handshake import Identity
from cluster.fleet.control import ControlledRole, View
from cluster.fleet.roles.process import Place, begin, load_kernels
from cluster.fleet.roles.wire import wire_shape
from cluster.library.bundled import open_model
from cluster.library.grammars import grammars_of
from cluster.router.build import build_trunk
from cluster.router.engine import Engine
from cluster.router.service import RouterService
from cluster.router.spans import RouterSpans
from cluster.tracing import start_tracing
from cluster.types import NodeId

if TYPE_CHECKING:
    from cluster.otel import Telemetry

CONNECT_S = 10.0


class RouterRole(ControlledRole):
    """Opens for requests when every node of the first table has loaded its experts."""

    role = Role.ROUTER

    def __init__(self, place: Place, config: EngineConfig) -> None:
        self._place, self._config = place, config
        self._restarts = begin(place)
        self._workers: Workers | None = None
        self._exchange: Exchange | None = None
        self._service: RouterService | None = None
        self._telemetry: Telemetry | None = None
        super().__init__(place.name, place.controller)

    def build(self) -> None:
        load_kernels()
        self._workers = Workers(self._config.threads)  # runs a kernel: after they are there
        self._library = open_model(self._place.library)
        self._library.require_common()
        self._trunk = build_trunk(self._library, self._place.variant, self._workers)

    def apply(self, view: View) -> tuple[int, int]:
        if view.table is None or not (view.active or self._exchange):
            return NO_TABLE
        addresses = {
            node: str(view.nodes[node]["address"]) for node in view.table.nodes if node in view.nodes
        }
        if self._exchange is None:
            self._open(view.table, addresses)
        else:
            assert self._service is not None, "it comes with the exchange"
            self._exchange.update(view.table, addresses, view.mending)
            self._service.between_steps(self._exchange.switch)
        return view.table.epoch, view.table.version

    @property
    def table_in_use(self) -> tuple[int, int]:
        """The newest table beside which no step uses an older one."""
        return NO_TABLE if self._exchange is None else self._exchange.acknowledged

    def _open(self, table: PlacementTable, addresses: dict[NodeId, str]) -> None:
        identity = Identity(self.role.value, self.name, self.incarnation, self._library.digest)
        shape = wire_shape(self._library, self._place.variant)
        choice = resolve(self._config.choice)
        self._exchange = Exchange(identity, shape, table, addresses, choice=choice)
        self._exchange.when_lost(self.hurry)
        self._exchange.connect(CONNECT_S)
        engine = Engine(
            self._trunk,
            self._exchange,
            self._config,
            grammars=grammars_of(self._library),
            library=self._library.digest,
            latency=self._exchange.latency_s,
        )
        self._telemetry = start_tracing(self._place.tracing, self.role.value, self.name)
        spans = None if self._telemetry is None else RouterSpans(self._telemetry, self._exchange.service)
        self._service = RouterService(engine, identity, self._place.host, self._place.port, spans)
        self.address = self._service.start()
        self._service.open()

    @property
    def ready(self) -> bool:
        return self._service is not None and self._service.ready

    def stats(self) -> dict[str, Any]:
        if self._service is None or self._exchange is None:
            return {"restarts": self._restarts}
        counts = dataclasses.asdict(self._service.stats) | self._service.turned.counts()
        counts["links_tampered_with"] += self._exchange.tampered
        return counts | {"restarts": self._restarts}

    def lost(self) -> dict[NodeId, int]:
        return {} if self._exchange is None else self._exchange.lost

    def load(self) -> dict[str, Any] | None:
        return None if self._exchange is None else self._exchange.load.stats().to_wire()

    def close(self) -> None:
        if self._service is not None:
            self._service.shutdown()  # and with it the exchange
        elif self._exchange is not None:
            self._exchange.close()
        if self._workers is not None:
            self._workers.close()
        if self._telemetry is not None:
            self._telemetry.shutdown()
