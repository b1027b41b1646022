"""Which path leads where, and what becomes of errors."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from cluster.config import GatewayConfig
from cluster.errors import InvalidRequest, MoemeshError, TooLarge
from cluster.gateway.caller import set_caller
from cluster.gateway.front import Front
from cluster.gateway.http import errors
from cluster.gateway.http.openai import OpenAi
from cluster.gateway.http.operations import Operations
from cluster.gateway.security.guard import Guard
from cluster.gateway.security.routes import OPEN, scopes_of

Handler = Callable[[Request], Awaitable[ASGIApp]]


def build_app(front: Front, config: GatewayConfig, guard: Guard | None = None) -> ASGIApp:
    """guard: None asks nobody for a key."""
    app = _routes(front, config)
    return app if guard is None else Guarded(app, guard, config.guard_health)


def _routes(front: Front, config: GatewayConfig) -> Starlette:
    openai = OpenAi(front, config.max_message_bytes)
    operations = Operations(front)
    return Starlette(
        routes=[
            _route("/v1/completions", openai.completions, "POST"),
            _route("/v1/chat/completions", openai.chats, "POST"),
            _route("/v1/embeddings", openai.embeddings, "POST"),
            _route("/v1/models", openai.models, "GET"),
            _route("/v1/models/{name:path}", openai.model, "GET"),
            _route("/health", operations.health, "GET"),
            _route("/ready", operations.ready, "GET"),
            _route("/metrics", operations.metrics, "GET"),
            _route("/metrics/experts", operations.experts, "GET"),
        ],
        exception_handlers={HTTPException: _no_such_route},
    )


def _route(path: str, handler: Handler, method: str) -> Route:
    return Route(path, Answering(handler), methods=[method])


class Answering:
    """ASGI app of one handler: what it raises becomes an answer."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive, send)
        try:
            response = await self._handler(request)
        except TooLarge as error:
            response = errors.response_of(error, status=413)
        except Exception as error:
            response = errors.response_of(errors.known(error))
        await response(scope, receive, send)


class Guarded:
    """ASGI app that lets only those through who may."""

    def __init__(self, app: ASGIApp, guard: Guard, guard_health: bool) -> None:
        self._app, self._guard, self._guard_health = app, guard, guard_health

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scopes = scopes_of(scope["path"], self._guard_health)
        if scopes != OPEN:
            try:
                authorization = Headers(scope=scope).get("authorization")
                set_caller(self._guard.authorise(authorization, scopes))
            except MoemeshError as error:
                await errors.response_of(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)


async def _no_such_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    wrong = InvalidRequest(f"{request.method} {request.url.path} is not offered here: {error.detail}")
    return JSONResponse(errors.body_of(wrong, error.status_code), error.status_code, error.headers)
