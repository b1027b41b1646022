"""What both of the gateway's servers serve from."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.gateway.cluster_view import ClusterView
from cluster.gateway.pool import RouterPool
from cluster.gateway.readiness import Readiness
from cluster.gateway.served import ServedModel


@dataclass(frozen=True)
class Front:
    """One a gateway. cluster: what the controller last said of everybody."""

    served: ServedModel
    pool: RouterPool
    readiness: Readiness
    cluster: ClusterView
