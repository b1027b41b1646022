"""Which scopes a call needs, by its path: gRPC methods and HTTP routes in one table. Pure."""

from __future__ import annotations

from cluster.gateway.security.guard import ANY
from cluster.gateway.security.keys import Scope

OPEN: tuple[Scope, ...] = ()
"""No key is needed."""

HEALTH = ("/grpc.health.v1.Health/", "/health", "/ready")

# The first prefix that fits; what fits none needs the highest scope.
_SCOPES: tuple[tuple[str, tuple[Scope, ...]], ...] = (
    ("/moemesh.v1.Generation/", (Scope.infer,)),
    ("/moemesh.v1.Admin/", (Scope.admin,)),
    ("/inference.GRPCInferenceService/ModelInfer", (Scope.infer,)),
    ("/inference.GRPCInferenceService/ModelStreamInfer", (Scope.infer,)),
    ("/inference.GRPCInferenceService/ModelStatistics", (Scope.observe,)),
    ("/inference.GRPCInferenceService/", ANY),
    ("/grpc.reflection.", ANY),
    ("/v1/models", ANY),
    ("/v1/", (Scope.infer,)),
    ("/metrics", (Scope.observe,)),
)


def scopes_of(path: str, guard_health: bool) -> tuple[Scope, ...]:
    """One of the result is needed; OPEN needs none. guard_health: ask for a key on health checks too."""
    if path.startswith(HEALTH):
        return ANY if guard_health else OPEN
    for prefix, scopes in _SCOPES:
        if path.startswith(prefix):
            return scopes
    return (Scope.admin,)
