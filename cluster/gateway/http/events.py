"""Server-sent events as one ASGI response: each event goes out when it is there, nothing is gathered."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractContextManager, aclosing
from typing import Any

from starlette.types import Receive, Scope, Send

from cluster.gateway.http.presence import while_connected

DONE = b"data: [DONE]\n\n"
HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # a proxy that gathers bytes would hold tokens back
)


def event(value: Mapping[str, Any]) -> bytes:
    """One event; JSON has no raw line break, so one line holds it."""
    return b"data: %b\n\n" % json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


class EventStream:
    """ASGI response of `events`, which is closed when the client leaves; `held` is left then, too."""

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        headers: Mapping[str, str],
        held: AbstractContextManager[object],
    ) -> None:
        self._events, self._held = events, held
        self._headers = [*HEADERS, *((k.encode(), v.encode()) for k, v in headers.items())]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._held:
            await send({"type": "http.response.start", "status": 200, "headers": self._headers})
            async with while_connected(receive), aclosing(self._events) as events:
                async for data in events:
                    await send({"type": "http.response.body", "body": data, "more_body": True})
            # Outside: with it the server reports a disconnect, which is none.
            await send({"type": "http.response.body", "body": b"", "more_body": False})
