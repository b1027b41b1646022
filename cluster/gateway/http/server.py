"""uvicorn on the gateway's loop: a socket bound before anything is announced, a drain with a limit."""

from __future__ import annotations

import asyncio
import socket
import ssl

import uvicorn
from starlette.types import ASGIApp

from cluster.config import GatewayConfig
from cluster.errors import PortInUse
from cluster.gateway.http.connection import bounded

BACKLOG = 1024
POLL_S = 0.2
SEND_BUFFER_BYTES = 128 << 10
"""Of a connection, which it has from the port's socket. What the system would choose grows to megabytes for
one that is not read, and hides it."""

MAX_HEAD_BYTES = 32 << 10
"""Request line and headers together."""


class HttpServer:
    """Lifecycle: bind() → port, start(), stop(); all on one loop, which is not that of the main thread.

    gateway: its limits. context: for TLS; None speaks plain HTTP.
    """

    def __init__(
        self, app: ASGIApp, gateway: GatewayConfig, port: int, context: ssl.SSLContext | None = None
    ) -> None:
        self._host, self._port = gateway.http_host, port
        self._socket: socket.socket | None = None
        self._task: asyncio.Task[None] | None = None
        config = uvicorn.Config(
            app,
            http=bounded(gateway.request_s, gateway.reader_s),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            ssl_context_factory=None if context is None else lambda _config, _default: context,
        )
        self._server = uvicorn.Server(config)

    def bind(self) -> int:
        """Take the port; returns it, chosen by the system if 0 was asked for. Raises PortInUse."""
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        try:
            self._socket = socket.create_server((self._host, self._port), family=family, backlog=BACKLOG)
        except OSError as error:
            raise PortInUse(
                f"cannot listen for HTTP on {self._host} port {self._port} ({error.strerror or error}); "
                "stop what uses it or choose another: --http HOST:PORT"
            ) from None
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        port: int = self._socket.getsockname()[1]
        return port

    def start(self) -> None:
        assert self._socket is not None, "bind() first"
        serving = self._server.serve(sockets=[self._socket])
        self._task = asyncio.get_running_loop().create_task(serving, name="http")

    async def stop(self, grace_s: float) -> None:
        """Take no new connection, give running requests `grace_s` seconds, then cut them."""
        if self._task is None:
            if self._socket is not None:
                self._socket.close()
            return
        # uvicorn looks every tenth of a second, and complains where even an idle server had no time for that.
        self._server.config.timeout_graceful_shutdown = grace_s + POLL_S  # type: ignore[assignment]
        self._server.should_exit = True
        await self._task
