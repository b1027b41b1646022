"""Methods that clients of the open inference protocol know and this server does not offer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import grpc

from cluster.errors import Unsupported
from cluster.gateway.status import Context, answering

SERVICE = "/inference.GRPCInferenceService/"

_REASONS: Mapping[str, str] = {
    "RepositoryModel": "a gateway serves one model, from the start to the end: see `moemesh up --model`",
    "SystemSharedMemory": "tensors travel in the messages",
    "CudaSharedMemory": "tensors travel in the messages",
    "TraceSetting": "tracing is configured when the cluster is started",
    "LogSettings": "logging is configured when the cluster is started",
}
OTHERWISE = "reflection lists what there is"


class Unoffered(grpc.GenericRpcHandler):  # type: ignore[type-arg]
    """Looked at after all services: ends what none of them has, with a sentence that says why."""

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        if not details.method.startswith(SERVICE):
            return None
        name = details.method.removeprefix(SERVICE)
        reason = next((why for start, why in _REASONS.items() if name.startswith(start)), OTHERWISE)

        async def refuse(requests: object, context: Context) -> None:
            async with answering(context):
                raise Unsupported(f"{name} is not offered: {reason}")

        return grpc.stream_stream_rpc_method_handler(refuse)
