"""From an error to a gRPC status: its code, one line, and details a client can act on."""

from __future__ import annotations

import asyncio
import logging
from types import TracebackType
from typing import Any, Self

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from cluster.errors import MoemeshError, Overloaded
from cluster.gateway.caller import request_fields, set_time_left

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]

ERROR_DOMAIN = "moemesh"
DETAILS_KEY = "grpc-status-details-bin"
STATUS_S = 1.0
"""For how long an ended RPC's handler waits until its status has been written."""


def status_of(error: MoemeshError, emitted: int = 0) -> status_pb2.Status:
    """google.rpc.Status: ErrorInfo (reason: the error's class; emitted: tokens that were sent), RetryInfo."""
    info = error_details_pb2.ErrorInfo(reason=type(error).__name__, domain=ERROR_DOMAIN)
    info.metadata["emitted"] = str(emitted)
    details: list[Message] = [info]
    if isinstance(error, Overloaded):
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(round(error.retry_after_s * 1000))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    code = grpc.StatusCode[error.code].value[0]
    packed = [_packed(detail) for detail in details]
    return status_pb2.Status(code=code, message=line_of(error, emitted), details=packed)


def line_of(error: MoemeshError, emitted: int = 0) -> str:
    return f"{error} ({emitted} tokens were sent)" if emitted else str(error)


def _packed(message: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed


class answering:
    """Ends the RPC with the status of an error raised inside. Set `emitted` as tokens are sent."""

    def __init__(self, context: Context) -> None:
        self.emitted = 0
        self._context = context

    async def __aenter__(self) -> Self:
        set_time_left(self._context.time_remaining())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or not isinstance(error, Exception) or isinstance(error, grpc.aio.AbortError):
            return
        if not isinstance(error, MoemeshError):
            # A bug of ours. The client learns no more than that; its text stays out of the answer.
            log.error(
                "a request failed inside the gateway", exc_info=error, extra={"fields": request_fields()}
            )
            error = MoemeshError("internal error in the gateway; its log has the traceback")
        status = status_of(error, self.emitted)
        try:
            async with asyncio.timeout(STATUS_S):
                await self._context.abort(
                    grpc.StatusCode[error.code],
                    status.message,
                    trailing_metadata=((DETAILS_KEY, status.SerializeToString()),),
                )
        except TimeoutError:
            # It waits behind what its client does not read; gRPC has it, and a task is not kept for it.
            raise asyncio.CancelledError from None
