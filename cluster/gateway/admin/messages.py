"""From what the controller says to the messages of moemesh.v1.Admin. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from cluster.balance.load import LoadStats
from cluster.balance.placement import PlacementTable
from cluster.types import NodeId
from protos import admin_pb2 as pb

Told = Mapping[str, Any]

ROLES = {"node": pb.ROLE_NODE, "router": pb.ROLE_ROUTER, "gateway": pb.ROLE_GATEWAY}
HEALTHS = {"alive": pb.HEALTH_ALIVE, "suspected": pb.HEALTH_SUSPECTED, "dead": pb.HEALTH_DEAD}


def placement_of(table: PlacementTable) -> pb.Placement:
    layers = [
        pb.LayerPlacement(layer=layer, experts=[pb.Holders(nodes=holders) for holders in experts])
        for layer, experts in enumerate(table.replicas)
    ]
    version = pb.TableVersion(epoch=table.epoch, version=table.version)
    return pb.Placement(table=version, nodes=table.nodes, layers=layers)


def state_of(told: Told) -> pb.ClusterState:
    """told: a STATUS answer, or what gateways are told with their syncs."""
    return pb.ClusterState(
        table=pb.TableVersion(epoch=told["epoch"], version=told["version"]),
        active=bool(told["version"]) and told["active"] == told["version"],
        settled=told["settled"],
        pending=told["pending"],
        members=[_member(one) for one in told["members"]],
        tiers=pb.TierPolicy(offered=told["tiers"]),
    )


def _member(one: Told) -> pb.Member:
    return pb.Member(
        id=one["id"],
        role=ROLES[one["role"]],
        health=HEALTHS[one["health"]],
        ready=one["ready"],
        address=one["address"],
        incarnation=one["incarnation"],
        error="" if one["error"] is None else one["error"][1],
        drained=one["drained"],
        experts=one["experts"],
    )


def stats_of(told: Told) -> pb.ClusterStats:
    """told: a STATUS answer with detail. Raises ProtocolError on broken statistics."""
    load = None if told["load"] is None else LoadStats.from_wire(told["load"])
    return pb.ClusterStats(
        state=state_of(told),
        nodes=[_node(one, load) for one in _of(told, "node")],
        routers=[_counts(pb.RouterStats, one) for one in _of(told, "router")],
        gateways=[_counts(pb.GatewayStats, one) for one in _of(told, "gateway")],
        layers=[] if load is None else _layers(load),
    )


def _of(told: Told, role: str) -> list[Told]:
    return [one for one in told["members"] if one["role"] == role]


def _node(one: Told, load: LoadStats | None) -> pb.NodeStats:
    stats: pb.NodeStats = _counts(pb.NodeStats, one)
    stats.share = one["share"] or 0.0
    seen = None if load is None else load.nodes.get(NodeId(one["id"]))
    if seen is not None and math.isfinite(seen.speed):
        stats.speed = seen.speed
    return stats


def _counts(message: Any, one: Told) -> Any:
    """A message of this type with the counts that the member tells under its fields' names; it may have
    told none yet."""
    counts = {name: one["stats"][name] for name in message.DESCRIPTOR.fields_by_name if name in one["stats"]}
    return message(id=one["id"], **counts)


def _layers(load: LoadStats) -> list[pb.LayerLoad]:
    return [
        pb.LayerLoad(
            layer=layer,
            rows_per_step=rows.tolist(),
            imbalance=ratio,
        )
        for layer, (rows, ratio) in enumerate(zip(load.load, load.imbalance.tolist(), strict=True))
        if rows.any()
    ]


def plan_of(found: Told) -> pb.MovePlan:
    """found: as `cluster.controller.rebalance.describe`, with `started`."""
    return pb.MovePlan(
        **{name: found[name] for name in ("started", "worth", "gain_s", "cost_s", "bytes", "seconds")},
        now=_quality(found["now"]),
        then=_quality(found["then"]),
        stages=[
            pb.Stage(loads=_moves(stage["loads"]), drops=_moves(stage["drops"]), seconds=stage["seconds"])
            for stage in found["stages"]
        ],
        refused=[
            pb.Refusal(layer=each["layer"], expert=each["expert"], reason=each["where"])
            for each in found["refused"]
        ],
    )


def _quality(values: Told) -> pb.Quality:
    return pb.Quality(**{**values, "copies": round(values["copies"])})


def _moves(moves: Sequence[Told]) -> list[pb.Move]:
    return [pb.Move(layer=move["layer"], expert=move["expert"], node=move["where"]) for move in moves]
