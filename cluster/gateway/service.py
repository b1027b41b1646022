"""The gateway as a plain class: a gRPC server with a thread and an event loop of its own."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import secrets
import threading
from collections.abc import Mapping
from typing import Any

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from cluster.config import GatewayConfig
from cluster.dispatch.handshake import Identity
from cluster.errors import ClusterError, PortInUse, StartFailed
from cluster.gateway.generation import GenerationService
from cluster.gateway.health import HealthService
from cluster.gateway.open_inference import OpenInferenceService
from cluster.gateway.routers import RouterPool
from cluster.gateway.served import ServedModel
from cluster.types import RouterId
from protos import generation_pb2, generation_pb2_grpc, open_inference_pb2, open_inference_pb2_grpc

log = logging.getLogger(__name__)

START_S = 20.0
GRACE_S = 2.0
SERVICES = (
    generation_pb2.DESCRIPTOR.services_by_name["Generation"].full_name,
    open_inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name,
)
HEALTH = "grpc.health.v1.Health"
KEEPALIVE_MS = 20_000


class GatewayService:
    """Lifecycle: start() → address, ready, update() as routers come and go, shutdown(); not restartable.

    start, update, stats and shutdown are called from a control thread, any one; requests live on the
    gateway's own loop, so a busy control thread does not delay a token.
    """

    def __init__(self, config: GatewayConfig, served: ServedModel, name: str = "gateway") -> None:
        self._config = config
        self._served = served
        self._identity = Identity("gateway", name, secrets.randbits(32), served.library)
        self._pool: RouterPool | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._started = threading.Event()
        self._failure: Exception | None = None
        self._address = ""
        self._grace_s = GRACE_S

    @property
    def ready(self) -> bool:
        """Whether a request sent now would reach a router."""
        return self._pool is not None and self._pool.ready

    @property
    def address(self) -> str:
        """ "host:port", with the port that the system chose if 0 was asked for. Empty before start()."""
        return self._address

    def start(self) -> str:
        """Listen; returns the address. Raises PortInUse, or ClusterError for a host beyond loopback."""
        check_host(self._config)
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
        assert self._pool is not None, "start() first"
        with contextlib.suppress(RuntimeError):  # the loop has closed: shutdown() was faster
            self._loop.call_soon_threadsafe(self._pool.update, named)

    def stats(self) -> dict[str, Any]:
        """Counts of now, for status displays: {"outstanding", "queued", "routers"}."""
        pool = self._pool
        if pool is None:
            return {"outstanding": 0, "queued": 0, "routers": 0}
        return {"outstanding": pool.outstanding, "queued": pool.queued, "routers": pool.connected}

    def shutdown(self, grace_s: float = GRACE_S) -> None:
        """Refuse new requests, let running ones end for `grace_s` seconds, then cut them; idempotent."""
        if self._loop is not None and self._stop is not None:
            self._grace_s = grace_s
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._stop.set)
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception as error:
            # Before `_started` the caller of start() raises it; later nobody waits, so it is logged.
            if self._started.is_set():
                log.exception("the gateway's loop ended")
            self._failure = error
        finally:
            self._started.set()

    async def _serve(self) -> None:
        health = HealthService(SERVICES)
        pool = RouterPool(self._identity, self._config.max_queued, health.set)
        server = self._server(pool, health)
        port = self._bind(server)
        await server.start()
        self._loop, self._stop, self._pool = asyncio.get_running_loop(), asyncio.Event(), pool
        self._address = join_address(self._config.host, port)
        self._started.set()
        try:
            await self._stop.wait()
        finally:
            health.close()
            await server.stop(self._grace_s)
            await pool.close()

    def _server(self, pool: RouterPool, health: HealthService) -> grpc.aio.Server:
        server = grpc.aio.server(
            options=(
                ("grpc.so_reuseport", 0),  # or a second gateway would share the port in silence
                ("grpc.max_receive_message_length", self._config.max_message_bytes),
                # A client that vanished without a word is noticed, and its request freed.
                ("grpc.keepalive_time_ms", KEEPALIVE_MS),
                ("grpc.keepalive_timeout_ms", KEEPALIVE_MS),
                ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_MS // 2),
            )
        )
        generation = GenerationService(self._served, pool, self._config.max_message_bytes)
        generation_pb2_grpc.add_GenerationServicer_to_server(generation, server)
        open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(
            OpenInferenceService(self._served, pool), server
        )
        health_pb2_grpc.add_HealthServicer_to_server(health, server)
        reflection.enable_server_reflection((*SERVICES, HEALTH, reflection.SERVICE_NAME), server)
        return server

    def _bind(self, server: grpc.aio.Server) -> int:
        where = join_address(self._config.host, self._config.port)
        try:
            return server.add_insecure_port(where)
        except RuntimeError:
            raise PortInUse(f"cannot listen on {where}; stop what uses the port or choose another") from None


def check_host(config: GatewayConfig) -> None:
    """Raises ClusterError for a host that others can reach, unless the configuration says `insecure`."""
    if config.insecure or config.host == "localhost":
        return
    try:
        loopback = ipaddress.ip_address(config.host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise ClusterError(
            f"{config.host} can be reached from other machines, without encryption or keys; "
            "listen on 127.0.0.1, or say --insecure"
        )


def join_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
