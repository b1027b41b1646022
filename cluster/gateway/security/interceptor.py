"""API keys on gRPC: every call passes here before its handler is looked at."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from cluster.errors import MoemeshError
from cluster.gateway.caller import set_caller
from cluster.gateway.security.guard import Guard
from cluster.gateway.security.routes import OPEN, scopes_of
from cluster.gateway.status import Context, answering

Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Any]]


class KeyInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """The caller is set for the task that then runs the handler."""

    def __init__(self, guard: Guard, guard_health: bool) -> None:
        self._guard = guard
        self._guard_health = guard_health

    async def intercept_service(self, continuation: Continuation, details: grpc.HandlerCallDetails) -> Any:
        scopes = scopes_of(details.method, self._guard_health)
        if scopes != OPEN:
            try:
                set_caller(self._guard.authorise(_authorization(details), scopes))
            except MoemeshError as error:
                return _refusing(error)
        return await continuation(details)


def _authorization(details: grpc.HandlerCallDetails) -> str | None:
    for name, value in details.invocation_metadata:
        if name == "authorization":
            return value if isinstance(value, str) else None
    return None


def _refusing(error: MoemeshError) -> Any:
    """A handler that ends any kind of call without reading a message of it."""

    async def refuse(requests: object, context: Context) -> None:
        async with answering(context):
            raise error

    return grpc.stream_stream_rpc_method_handler(refuse)
