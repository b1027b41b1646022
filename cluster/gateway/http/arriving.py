"""HTTP requests' trace context, where requests are traced."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from cluster.gateway.arrival import note_arrival


class Arriving:
    """ASGI app around another: notes when a request arrives, and what it belongs to."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        note_arrival(Headers(scope=scope))
        await self._app(scope, receive, send)
