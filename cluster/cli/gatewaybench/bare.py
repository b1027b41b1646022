"""A service that does nothing but answer: what is left of a first token's time when there is no gateway."""

from __future__ import annotations

from typing import Any

import grpc

from cluster.gateway.grpc_server import SERVICES, bind
from protos import generation_pb2 as pb

IDS = range(64)

Context = grpc.aio.ServicerContext[Any, Any]


async def serve() -> tuple[grpc.aio.Server, str]:
    """Listening; the server to stop, and its address."""
    server = grpc.aio.server()
    handlers = {
        "Tokenize": grpc.unary_unary_rpc_method_handler(
            _tokenize, pb.TokenizeRequest.FromString, pb.TokenizeResponse.SerializeToString
        ),
        "Generate": grpc.unary_stream_rpc_method_handler(
            _generate, pb.GenerateRequest.FromString, pb.GenerateResponse.SerializeToString
        ),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICES[0], handlers),))
    port = bind(server, "127.0.0.1", 0)
    await server.start()
    return server, f"127.0.0.1:{port}"


async def _tokenize(request: pb.TokenizeRequest, context: Context) -> pb.TokenizeResponse:
    return pb.TokenizeResponse(token_ids=IDS)


async def _generate(request: pb.GenerateRequest, context: Context) -> None:
    """The two messages that a request of one token gets, at once."""
    await context.write(pb.GenerateResponse(start=pb.Start(request_id="bare")))
    finish = pb.Finish(reason=pb.FINISH_REASON_LENGTH)
    await context.write(pb.GenerateResponse(token_ids=[0], finish=finish))
