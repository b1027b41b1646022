"""A message that protobuf cannot read is a wrong request, not a failure of the server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from cluster.errors import InvalidRequest
from cluster.gateway.status import Context, answering


@dataclass(frozen=True)
class Unreadable:
    """In place of the message. why: protobuf's words."""

    why: str


class DecodingInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Calls with one request are answered with INVALID_ARGUMENT where gRPC would say UNKNOWN. Those with a
    stream of requests meet DecodeError as they read it."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_streaming or handler.request_deserializer is None:
            return handler
        make = grpc.unary_unary_rpc_method_handler
        if handler.response_streaming:
            make = grpc.unary_stream_rpc_method_handler
        method = handler.unary_stream if handler.response_streaming else handler.unary_unary
        return make(_checked(method), _tolerant(handler.request_deserializer), handler.response_serializer)


def _tolerant(read: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def read_or_not(data: bytes) -> Any:
        try:
            return read(data)
        except DecodeError as error:
            return Unreadable(str(error))

    return read_or_not


def _checked(method: Any) -> Any:
    """method: a coroutine function; whoever answers with a stream writes it to the context."""

    async def call(request: Any, context: Context) -> Any:
        await _refuse(request, context)
        return await method(request, context)

    return call


async def _refuse(request: Any, context: Context) -> None:
    if isinstance(request, Unreadable):
        async with answering(context):
            raise InvalidRequest(f"the message cannot be read: {request.why}")
