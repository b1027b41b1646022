"""The gateway as a plain class: gRPC and HTTP servers on a thread and an event loop of their own."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import secrets
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvloop

from cluster.config import GatewayConfig
from cluster.dispatch.handshake import Identity
from cluster.errors import ClusterError, PortInUse, StartFailed
from cluster.gateway import grpc_server
from cluster.gateway.admin.link import ControllerLink
from cluster.gateway.admin.service import AdminService
from cluster.gateway.cluster_view import ClusterView
from cluster.gateway.front import Front
from cluster.gateway.grpc_server import SERVICES, join_address
from cluster.gateway.health import HealthService
from cluster.gateway.http.app import build_app
from cluster.gateway.http.arriving import Arriving
from cluster.gateway.http.server import HttpServer
from cluster.gateway.pool import RouterPool
from cluster.gateway.readiness import Readiness
from cluster.gateway.security.certificates import Certificates
from cluster.gateway.security.guard import Guard
from cluster.gateway.served import ServedModel
from cluster.gateway.spans import GatewaySpans
from cluster.types import RouterId

if TYPE_CHECKING:
    from cluster.otel import Telemetry

log = logging.getLogger(__name__)

START_S = 20.0


class GatewayService:
    """Lifecycle: start() → address, ready, update() as routers come and go, shutdown(); not restartable.

    start, update, stats and shutdown are called from a control thread, any one; requests live on the
    gateway's own loop, so a busy control thread does not delay a token.
    """

    def __init__(
        self,
        config: GatewayConfig,
        served: ServedModel,
        name: str = "gateway",
        controller: str = "",
        telemetry: Telemetry | None = None,
    ) -> None:
        """controller: "host:port" of who decides for the cluster; "" offers no moemesh.v1.Admin.
        telemetry: None traces no request; shut down by its owner."""
        self._spans = None if telemetry is None else GatewaySpans(telemetry, served.name)
        self._config = config
        self._served = served
        self._identity = Identity("gateway", name, secrets.randbits(32), served.library)
        self._controller = ControllerLink(controller, self._identity) if controller else None
        self._front: Front | None = None
        self._cluster = ClusterView()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._started = threading.Event()
        self._failure: Exception | None = None
        self._address = self._http_address = ""
        self._grace_s = config.drain_s

    @property
    def ready(self) -> bool:
        """Whether a request sent now would get its tokens: one was generated lately."""
        return self._front is not None and self._front.readiness.ready

    @property
    def failing(self) -> tuple[float, str]:
        """As `Readiness.failing`."""
        return (0.0, "") if self._front is None else self._front.readiness.failing

    @property
    def address(self) -> str:
        """ "host:port", with the port that the system chose if 0 was asked for. Empty before start()."""
        return self._address

    @property
    def http_address(self) -> str:
        """As `address`, "" also where no HTTP is offered."""
        return self._http_address

    def start(self) -> str:
        """Listen; returns gRPC's address. Raises PortInUse, and what `check_access` raises."""
        check_access(self._config)
        self._thread.start()
        if not self._started.wait(START_S):
            raise StartFailed(f"the gateway did not listen within {START_S:g} s; its log says why")
        if self._failure is not None:
            self._thread.join()
            raise self._failure
        return self._address

    def update(self, routers: Mapping[str, str]) -> None:
        """The routers that take requests now: id → "host:port". Needs start()."""
        named = {RouterId(name): address for name, address in routers.items()}
        assert self._loop is not None, "start() first"
        assert self._front is not None, "start() first"
        with contextlib.suppress(RuntimeError):  # the loop has closed: shutdown() was faster
            self._loop.call_soon_threadsafe(self._front.pool.update, named)

    def tell(self, cluster: Mapping[str, Any]) -> None:
        """What the controller says of the whole cluster, for metrics and watchers. Needs start()."""
        self._cluster.update(cluster)
        assert self._loop is not None, "start() first"
        with contextlib.suppress(RuntimeError):  # the loop has closed: shutdown() was faster
            self._loop.call_soon_threadsafe(self._told)

    def _told(self) -> None:
        assert self._front is not None, "start() first"
        self._front.pool.tiers = self._cluster.now.tiers
        self._cluster.announce()

    def stats(self) -> dict[str, Any]:
        """Counts of now, for status displays: {"outstanding", "queued", "routers"}, and since the start:
        {"replayed"}. Of plain numbers: the loop goes on changing what they count."""
        if self._front is None:
            return {"outstanding": 0, "queued": 0, "routers": 0, "replayed": 0}
        pool = self._front.pool
        return {
            "outstanding": pool.outstanding,
            "queued": pool.queued,
            "routers": pool.connected,
            "replayed": pool.meter.replayed,
        }

    def shutdown(self, grace_s: float | None = None) -> None:
        """Say NOT_SERVING, refuse new requests, let running ones end for `grace_s` seconds (the
        configuration's `drain_s` if None), then cut them; idempotent."""
        if self._loop is not None and self._stop is not None:
            self._grace_s = self._config.drain_s if grace_s is None else grace_s
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._stop.set)
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        try:
            uvloop.run(self._serve())
        except Exception as error:
            # Before `_started` the caller of start() raises it; later nobody waits, so it is logged.
            if self._started.is_set():
                log.exception("the gateway's loop ended")
            self._failure = error
        finally:
            self._started.set()

    async def _serve(self) -> None:
        config = self._config
        health = HealthService((*SERVICES, self._served.name))
        pool = RouterPool(
            self._identity,
            config,
            lambda connected: readiness.routers_changed(connected),
            spans=self._spans,
        )
        readiness = Readiness(pool, health.set)
        front = Front(self._served, pool, readiness, self._cluster)
        traced = self._spans is not None
        guard = Guard(Path(config.keys)) if config.keys else None
        certificates = Certificates(config.tls) if config.tls else None
        server = grpc_server.build(front, health, config, guard, self._admin(guard), traced)
        web = _web_server(front, config, guard, certificates, traced)
        http_port = 0 if web is None else web.bind()
        try:
            port = grpc_server.bind(server, config.host, config.port, certificates)
        except PortInUse:
            if web is not None:
                await web.stop(0.0)
            raise
        if web is not None:
            self._http_address = join_address(config.http_host, http_port)
            web.start()
        await server.start()
        loop = asyncio.get_running_loop()
        watching = loop.create_task(readiness.watch(), name="readiness")
        self._loop, self._stop, self._front = loop, asyncio.Event(), front
        self._address = join_address(config.host, port)
        self._started.set()
        try:
            await self._stop.wait()
        finally:
            # First say so, then let running requests end, then cut them.
            health.close()
            self._cluster.close()
            watching.cancel()
            stopping = [server.stop(self._grace_s)]
            if web is not None:
                stopping.append(web.stop(self._grace_s))
            await asyncio.gather(*stopping)
            await pool.close()

    def _admin(self, guard: Guard | None) -> AdminService | None:
        if self._controller is None:
            return None
        guarded = guard is not None or _is_loopback(self._config.host)
        return AdminService(self._controller, self._cluster, guarded)


def _web_server(
    front: Front,
    config: GatewayConfig,
    guard: Guard | None,
    certificates: Certificates | None,
    traced: bool,
) -> HttpServer | None:
    if config.http_port is None:
        return None
    context = None if certificates is None else certificates.for_http()
    app = build_app(front, config, guard)
    if traced:
        app = Arriving(app)
    return HttpServer(app, config, config.http_port, context)


def check_access(config: GatewayConfig) -> None:
    """Raises ClusterError for hosts that others can reach, unless there are TLS and keys, or the
    configuration says `insecure`; ConfigError for files of keys and certificates that cannot be used."""
    if config.keys:
        Guard(Path(config.keys))
    if config.tls:
        Certificates(config.tls)
    if config.insecure or (config.tls is not None and config.keys):
        return
    for host in (config.host, config.http_host):
        if not _is_loopback(host):
            raise ClusterError(
                f"{host} can be reached from other machines, without encryption or keys; listen on "
                "127.0.0.1, give --tls-cert, --tls-key and --keys, or say --insecure"
            )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
