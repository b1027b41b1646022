"""Calls of gateways over gRPC, for chaos runs."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import grpc
import numpy as np
from google.rpc import error_details_pb2  # type: ignore[import-untyped]
from grpc_status import rpc_status

from cluster.experiments.chaos.clients import Call, CallFailed, Part
from protos import generation_pb2 as pb
from protos import generation_pb2_grpc

ABORT_S = 5.0
RECONNECT_MS = 500
"""A gateway is back sooner than gRPC by itself would look for it again."""

REASONS = {
    pb.FINISH_REASON_STOP: "stop",
    pb.FINISH_REASON_LENGTH: "length",
    pb.FINISH_REASON_ABORTED: "aborted",
}


class GatewayCaller:
    """A `cluster.experiments.chaos.clients.Caller`. Make one with `calling_gateways`."""

    def __init__(self, stubs: Mapping[str, generation_pb2_grpc.GenerationAsyncStub]) -> None:
        self._stubs = stubs

    async def generate(self, gateway: str, call: Call) -> AsyncGenerator[Part, None]:
        answer = self._stubs[gateway].Generate(_request(call), timeout=call.deadline_s)
        try:
            async for message in answer:
                reason = REASONS.get(message.finish.reason, "") if message.HasField("finish") else ""
                completion = message.finish.usage.completion_tokens
                yield Part(tuple(message.token_ids), bits_of(message.logprobs), reason, completion)
        except grpc.aio.AioRpcError as error:
            raise _failed(error) from None
        finally:
            answer.cancel()

    async def abort(self, gateway: str, request: str) -> None:
        try:
            await self._stubs[gateway].Abort(pb.AbortRequest(request_id=request), timeout=ABORT_S)
        except grpc.aio.AioRpcError as error:
            raise _failed(error) from None


@asynccontextmanager
async def calling_gateways(addresses: Mapping[str, str]) -> AsyncIterator[GatewayCaller]:
    """addresses: of gateways, by name."""
    options = [
        ("grpc.initial_reconnect_backoff_ms", RECONNECT_MS),
        ("grpc.max_reconnect_backoff_ms", RECONNECT_MS),
    ]
    channels = {name: grpc.aio.insecure_channel(where, options=options) for name, where in addresses.items()}
    try:
        yield GatewayCaller(
            {name: generation_pb2_grpc.GenerationStub(channel) for name, channel in channels.items()}
        )
    finally:
        for channel in channels.values():
            await channel.close(None)


def bits_of(logprobs: Sequence[float]) -> tuple[int, ...]:
    """Of float32."""
    return tuple(np.asarray(logprobs, dtype=np.float32).view(np.uint32).tolist())


def _request(call: Call) -> pb.GenerateRequest:
    wanted = call.question.sampling
    return pb.GenerateRequest(
        token_ids=pb.TokenIds(ids=call.question.prompt_ids),
        sampling=pb.Sampling(
            max_tokens=wanted.max_tokens,
            temperature=wanted.temperature,
            seed=wanted.seed,
            ignore_eos=wanted.ignore_eos,
        ),
        request_id=call.request,
        resume_from=len(call.had),
        resumed_ids=call.had,
        resume_window_s=call.window_s,
    )


def _failed(error: grpc.aio.AioRpcError) -> CallFailed:
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    info = error_details_pb2.ErrorInfo()
    told = status is not None and any(detail.Unpack(info) for detail in status.details)
    emitted = int(info.metadata["emitted"]) if told else None
    return CallFailed(error.code().name, info.reason if told else "", emitted, str(error.details()))
