"""grpc.health.v1: one status a service, SERVING only while a router can take requests."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cluster.gateway.status import Context

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


class HealthService(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """All services share one fate: they need a router. "" is the server as a whole.

    grpc_health's own asyncio servicer holds a lock while it writes to a watcher, so one watcher that
    does not read would stop every later change; here a change never waits for anybody.
    """

    def __init__(self, services: Iterable[str]) -> None:
        self._services = frozenset(services) | {""}
        self._serving = False
        self._closed = False
        self._changed = asyncio.Event()

    def set(self, serving: bool) -> None:
        """Called on the gateway's loop."""
        if serving != self._serving and not self._closed:
            self._serving = serving
            self._changed.set()
            self._changed = asyncio.Event()

    def close(self) -> None:
        """NOT_SERVING for good, so that load balancers leave before the port closes. It ends all watches: a
        drain waits for requests, not for those who only look."""
        self._serving, self._closed = False, True
        self._changed.set()

    def _status(self, service: str) -> health_pb2.HealthCheckResponse:
        if service not in self._services:
            return health_pb2.HealthCheckResponse(status=UNKNOWN)
        return health_pb2.HealthCheckResponse(status=SERVING if self._serving else NOT_SERVING)

    async def Check(
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> health_pb2.HealthCheckResponse:
        if request.service not in self._services:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"unknown service {request.service!r}")
        return self._status(request.service)

    async def List(
        self, request: health_pb2.HealthListRequest, context: Context
    ) -> health_pb2.HealthListResponse:
        return health_pb2.HealthListResponse(statuses={name: self._status(name) for name in self._services})

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Context) -> None:
        while True:
            # Taken before the write: a change during the write is then seen, not slept through.
            changed, closed = self._changed, self._closed
            await context.write(self._status(request.service))
            if closed:
                return
            await changed.wait()
