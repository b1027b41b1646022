"""Routes for whoever runs the gateway: is it alive, can it serve, what has it counted."""

from __future__ import annotations

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cluster.gateway.front import Front
from cluster.gateway.metrics import ExpertCollector, GatewayCollector


class Operations:
    def __init__(self, front: Front) -> None:
        self._front = front
        self._requests_and_roles = GatewayCollector(front)
        self._experts = ExpertCollector(front)

    async def health(self, request: Request) -> Response:
        """Alive: it answers. A process whose loop hangs does not."""
        return JSONResponse({"status": "alive"})

    async def ready(self, request: Request) -> Response:
        """200 while a token can be produced end to end, else 503."""
        ready = self._front.readiness.ready
        body = {"ready": ready, "model": self._front.served.name, "routers": self._front.pool.connected}
        return JSONResponse(body, 200 if ready else 503, {} if ready else {"retry-after": "1"})

    async def metrics(self, request: Request) -> Response:
        return self._exposed(request, self._requests_and_roles)

    async def experts(self, request: Request) -> Response:
        """A series an expert: thousands, so they are apart."""
        return self._exposed(request, self._experts)

    def _exposed(self, request: Request, collector: Collector) -> Response:
        encode, kind = choose_encoder(request.headers.get("accept", ""))
        registry = CollectorRegistry(auto_describe=False)
        registry.register(collector)
        return Response(encode(registry), headers={"content-type": kind})
