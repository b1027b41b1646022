"""A gateway as a process: the names and the tokenizer of a library, a gRPC server, the ready routers."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cluster.compute.weights import kv_dtype
from cluster.config import EngineConfig, GatewayConfig
from cluster.controller.members import NO_TABLE, Role
from cluster.errors import ProtocolError
from cluster.fleet.control import ControlledRole, View
from cluster.fleet.roles.process import Place, begin
from cluster.gateway.served import ServedModel
from cluster.gateway.service import GatewayService
from cluster.library.bundled import open_model
from cluster.router.kv import longest_sequence
from cluster.tracing import start_tracing

if TYPE_CHECKING:
    from cluster.otel import Telemetry

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Named:
    """A router that takes requests. epoch: of the controller that has last said so."""

    address: str
    epoch: int


def routers_of(view: View, before: Mapping[str, Named]) -> dict[str, Named]:
    """Those to use now. before: those that were used until now.

    A controller that has started again names nobody at first: a router of which only an earlier one has told
    is kept, with the streams that run on it, until this one has heard of it. So is one that is only late to
    report to the controller: whether it answers the gateway, their own link tells sooner.
    """
    ready = {
        name: Named(str(router["address"]), view.epoch)
        for name, router in view.routers.items()
        if router["ready"]
    }
    unheard = {
        name: router
        for name, router in before.items()
        if name not in view.routers and router.epoch != view.epoch
    }
    late = {
        name: Named(router.address, view.epoch)
        for name, router in before.items()
        if view.routers.get(name, {}).get("late") and view.routers[name]["address"] == router.address
    }
    return ready | late | unheard


class GatewayRole(ControlledRole):
    """engine: the routers' configuration, which decides how long a sequence may be."""

    role = Role.GATEWAY

    def __init__(self, place: Place, config: GatewayConfig, engine: EngineConfig) -> None:
        self._place, self._config, self._engine = place, config, engine
        self._restarts = begin(place)
        self._service: GatewayService | None = None
        self._routers: dict[str, Named] = {}
        self._telemetry: Telemetry | None = None
        self.closing_s += config.drain_s
        super().__init__(place.name, place.controller)

    def build(self) -> None:
        library = open_model(self._place.library)
        library.require_common()
        dtype = kv_dtype(library.manifest.trunk.floating, self._engine.kv)
        context = longest_sequence(library.spec, self._engine, dtype)
        served = ServedModel.of(library, context, self._place.variant)
        self._telemetry = start_tracing(self._place.tracing, self.role.value, self.name)
        service = GatewayService(self._config, served, self.name, self._place.controller, self._telemetry)
        self.address = service.start()
        self._service = service

    def apply(self, view: View) -> tuple[int, int]:
        assert self._service is not None, "build() comes first"
        self._routers = routers_of(view, self._routers)
        self._service.update({name: router.address for name, router in self._routers.items()})
        return NO_TABLE if view.table is None else (view.table.epoch, view.table.version)

    def observe(self, cluster: Mapping[str, Any]) -> None:
        if self._service is None:
            return
        try:
            self._service.tell(cluster)
        except ProtocolError as error:
            log.warning("the metrics keep what they had: %s", error)

    @property
    def ready(self) -> bool:
        return self._service is not None and self._service.ready

    def stats(self) -> dict[str, Any]:
        if self._service is None:
            return {"restarts": self._restarts}
        own = {
            "restarts": self._restarts,
            "http": self._service.http_address,
            "failing": self._service.failing,
        }
        return self._service.stats() | own

    def close(self) -> None:
        if self._service is not None:
            self._service.shutdown()
        if self._telemetry is not None:
            self._telemetry.shutdown()
