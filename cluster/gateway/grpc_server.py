"""The gRPC side of the gateway: its services on one asynchronous server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import grpc
from grpc_health.v1 import health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from cluster.config import GatewayConfig
from cluster.errors import PortInUse
from cluster.gateway.admin.service import AdminService
from cluster.gateway.arrival import ArrivalInterceptor
from cluster.gateway.decoding import DecodingInterceptor
from cluster.gateway.front import Front
from cluster.gateway.generation import GenerationService
from cluster.gateway.health import HealthService
from cluster.gateway.open_inference import OpenInferenceService
from cluster.gateway.security.certificates import Certificates
from cluster.gateway.security.guard import Guard
from cluster.gateway.security.interceptor import KeyInterceptor
from cluster.gateway.unoffered import Unoffered
from protos import (
    admin_pb2,
    admin_pb2_grpc,
    generation_pb2,
    generation_pb2_grpc,
    open_inference_pb2,
    open_inference_pb2_grpc,
)

SERVICES = (
    generation_pb2.DESCRIPTOR.services_by_name["Generation"].full_name,
    open_inference_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name,
)
ADMIN = admin_pb2.DESCRIPTOR.services_by_name["Admin"].full_name
HEALTH = "grpc.health.v1.Health"
KEEPALIVE_MS = 20_000


def build(
    front: Front,
    health: HealthService,
    config: GatewayConfig,
    guard: Guard | None = None,
    admin: AdminService | None = None,
    traced: bool = False,
) -> grpc.aio.Server:
    """guard: None asks nobody for a key. admin: None where there is no controller. traced: note when requests
    arrive, and with which trace context."""
    keys = () if guard is None else (KeyInterceptor(guard, config.guard_health),)
    arriving = (ArrivalInterceptor(),) if traced else ()
    server = grpc.aio.server(
        interceptors=(*arriving, *keys, DecodingInterceptor()),
        options=(
            ("grpc.so_reuseport", 0),  # or a second gateway would share the port in silence
            ("grpc.max_receive_message_length", config.max_message_bytes),
            ("grpc.max_concurrent_streams", config.max_streams),
            # A client that vanished without a word is noticed, and its request freed.
            ("grpc.keepalive_time_ms", KEEPALIVE_MS),
            ("grpc.keepalive_timeout_ms", KEEPALIVE_MS),
            ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_MS // 2),
        ),
        maximum_concurrent_rpcs=config.max_calls,
    )
    by_name: Any = ByName(server)
    generation = GenerationService(front.served, front.pool, config)
    generation_pb2_grpc.add_GenerationServicer_to_server(generation, by_name)
    inference = OpenInferenceService(front, config.reader_s)
    open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(inference, by_name)
    health_pb2_grpc.add_HealthServicer_to_server(health, by_name)
    listed = [*SERVICES, HEALTH, reflection.SERVICE_NAME]
    if admin is not None:
        admin_pb2_grpc.add_AdminServicer_to_server(admin, by_name)
        listed.append(ADMIN)
    reflection.enable_server_reflection(listed, by_name)
    server.add_generic_rpc_handlers((Unoffered(),))
    return server


class ByName:
    """A server for generated code, whose methods are looked up by name. Registered ones wait for a call each,
    and grpc.aio looks at all that wait whenever one of them gets its call: fifty of ours, for every request.
    """

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler[Any, Any]]) -> None:
        self._server.add_generic_rpc_handlers(handlers)

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        """They are among the others."""


def bind(server: grpc.aio.Server, host: str, port: int, certificates: Certificates | None = None) -> int:
    """Take the port; returns it, chosen by the system if 0 was asked for. Raises PortInUse."""
    where = join_address(host, port)
    try:
        if certificates is None:
            return server.add_insecure_port(where)
        return server.add_secure_port(where, certificates.for_grpc())
    except RuntimeError:
        raise PortInUse(f"cannot listen on {where}; stop what uses the port or choose another") from None


def join_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
