"""moemesh.v1.Admin over real sockets: a gateway, a real controller, and members that hold nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import status_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from cluster.config import GatewayConfig
from cluster.controller.service import ControllerService
from cluster.controller.state import Shape
from cluster.gateway.security import keys
from cluster.gateway.security.keys import Scope
from cluster.gateway.service import GatewayService
from protos import admin_pb2 as pb
from protos import admin_pb2_grpc
from support.fake_router import FakeRouter
from support.gateways import generation_stub, request, served_model, wait_until
from support.members import FakeCluster

SHAPE = Shape(nodes=3, layers=3, experts=8, sparse=(0, 2), expert_bytes=100)
NODES = ["node-0", "node-1", "node-2"]


@contextmanager
def administered(memory_bytes: int = 0, **config: Any) -> Iterator[tuple[GatewayService, FakeCluster]]:
    controller = ControllerService(SHAPE, epoch=4)
    address = controller.start()
    service = GatewayService(GatewayConfig(port=0, **config), served_model(), "gateway", address)
    try:
        with FakeCluster(address, SHAPE, memory_bytes) as cluster:
            service.start()
            service.tell(cluster.turn())
            yield service, cluster
    finally:
        service.shutdown(grace_s=0.2)
        controller.shutdown()


@contextmanager
def stub_of(service: GatewayService) -> Iterator[admin_pb2_grpc.AdminStub]:
    with grpc.insecure_channel(service.address) as channel:
        yield admin_pb2_grpc.AdminStub(channel)


def refusal(call: Any, message: Any, **options: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call(message, timeout=10, **options)
    return caught.value.code(), caught.value.details()


def test_placement_and_stats_are_what_the_controller_knows() -> None:
    with administered() as (service, cluster), stub_of(service) as stub:
        found = stub.GetPlacement(pb.GetPlacementRequest())
        table = cluster.nodes[0].table
        assert (found.table.epoch, found.table.version) == (4, table.version)
        assert tuple(found.nodes) == table.nodes
        held = [[tuple(expert.nodes) for expert in layer.experts] for layer in found.layers]
        assert held == [list(layer) for layer in table.replicas]

        before = stub.GetStats(pb.GetStatsRequest())
        assert not before.layers
        cluster.compute()
        cluster.turn()
        stats = stub.GetStats(pb.GetStatsRequest())
        assert [one.id for one in stats.state.members] == [*NODES, "router-0", "gateway"]
        assert {one.health for one in stats.state.members} == {pb.HEALTH_ALIVE}
        assert stats.state.active
        assert sum(node.held for node in stats.nodes) == 16
        assert [node.speed for node in stats.nodes] == [200.0] * 3
        assert sum(node.share for node in stats.nodes) == pytest.approx(1.0)
        assert (stats.routers[0].kv_pages_used, stats.routers[0].prefix_hits) == (3, 5)
        assert [layer.layer for layer in stats.layers] == [0, 2]
        for layer in stats.layers:
            rows = list(layer.rows_per_step)
            assert layer.imbalance == pytest.approx(max(rows) / (sum(rows) / 8))


def test_a_node_is_drained_and_let_back() -> None:
    with administered() as (service, cluster), stub_of(service) as stub:
        plan = stub.Drain(pb.DrainRequest(node="node-2"))
        assert plan.started
        assert plan.bytes == 100 * sum(len(stage.loads) for stage in plan.stages) > 0
        assert "being moved" in refusal(stub.Drain, pb.DrainRequest(node="node-0"))[1]
        for _ in range(4):
            cluster.turn()
        assert list(stub.GetPlacement(pb.GetPlacementRequest()).nodes) == ["node-0", "node-1"]
        drained = {one.id: one for one in stub.GetStats(pb.GetStatsRequest()).state.members}["node-2"]
        assert (drained.drained, drained.experts) == (True, 0)
        assert not cluster.nodes[2].held

        stub.Undrain(pb.UndrainRequest(node="node-2"))
        cluster.compute()
        cluster.turn()
        assert stub.Rebalance(pb.RebalanceRequest(force=True)).started
        for _ in range(12):
            cluster.turn()
        assert "node-2" in stub.GetPlacement(pb.GetPlacementRequest()).nodes
        assert cluster.nodes[2].held


def test_what_cannot_be_drained_is_refused_with_the_bytes() -> None:
    with administered(memory_bytes=750) as (service, _), stub_of(service) as stub:
        code, text = refusal(stub.Drain, pb.DrainRequest(node="node-1"))
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert "lack 200 bytes" in text
        assert refusal(stub.Drain, pb.DrainRequest())[0] is grpc.StatusCode.INVALID_ARGUMENT
        code, text = refusal(stub.Undrain, pb.UndrainRequest(node="node-7"))
        assert (code, "node-0, node-1, node-2" in text) == (grpc.StatusCode.NOT_FOUND, True)


def test_rebalance_plans_and_moves() -> None:
    with administered() as (service, cluster), stub_of(service) as stub:
        code, text = refusal(stub.Rebalance, pb.RebalanceRequest(dry_run=True))
        assert (code, "no router has computed" in text) == (grpc.StatusCode.UNAVAILABLE, True)
        cluster.compute()
        cluster.turn()
        plan = stub.Rebalance(pb.RebalanceRequest(dry_run=True, force=True))
        assert not plan.started
        assert plan.now.copies == 16 < plan.then.copies
        assert plan.then.step_s < plan.now.step_s
        assert stub.Rebalance(pb.RebalanceRequest(force=True)).started


def test_a_watcher_sees_the_state_and_every_later_one() -> None:
    with administered() as (service, cluster), stub_of(service) as stub:
        watch = stub.Watch(pb.WatchRequest(), timeout=30)
        first = next(watch)
        assert (first.active, first.settled, first.pending) == (True, True, 0)
        assert [one.id for one in first.members if one.role == pb.ROLE_NODE] == NODES
        service.tell(cluster.turn())  # nothing has changed, so nothing is said
        stub.Drain(pb.DrainRequest(node="node-1"))
        states = []
        while not states or states[-1].pending or not states[-1].settled:
            service.tell(cluster.turn())
            states.append(next(watch))
        assert states[0].pending >= 1
        last = {one.id: one for one in states[-1].members}
        assert (last["node-1"].drained, last["node-1"].experts) == (True, 0)
        assert states[-1].table.version > first.table.version


def test_a_slow_watcher_gets_the_newest_state_and_costs_nobody() -> None:
    with administered() as (service, cluster), stub_of(service) as stub:
        seen = cluster.turn()
        watch = stub.Watch(pb.WatchRequest(), timeout=60)
        next(watch)
        padding = [seen["members"][0] | {"id": f"node-{i}", "address": "x" * 4000} for i in range(64)]
        rounds = 100  # 25 MB in all: far beyond what sockets and flow control hold
        for version in range(1, rounds + 1):
            service.tell(seen | {"version": 100 + version, "members": padding})
        held = 0
        for state in watch:
            held += 1
            if state.table.version == 100 + rounds:
                break
        assert held < rounds
        watch.cancel()


def test_watchers_are_told_that_the_gateway_stops() -> None:
    with administered() as (service, _), stub_of(service) as stub:
        watch = stub.Watch(pb.WatchRequest(), timeout=30)
        next(watch)
        stopping = threading.Thread(target=service.shutdown, args=(30.0,))
        stopping.start()
        with pytest.raises(grpc.RpcError) as caught:
            next(watch)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        stopping.join(10.0)
        assert not stopping.is_alive()


def test_a_tier_that_is_withdrawn_is_refused() -> None:
    with (
        administered() as (service, cluster),
        FakeRouter() as router,
        stub_of(service) as stub,
        generation_stub(service) as generation,
    ):
        service.update({"r0": router.address})
        wait_until(lambda: service.stats()["routers"], "the router")
        assert stub.GetTierPolicy(pb.GetTierPolicyRequest()).offered == ["exact"]
        only = pb.SetTierPolicyRequest(policy=pb.TierPolicy(offered=["exact"]))
        assert stub.SetTierPolicy(only).offered == ["exact"]
        for offered, why in ((["exact", "lowbit"], "no tier 'lowbit'"), ([], "no tier would be offered")):
            asked = pb.SetTierPolicyRequest(policy=pb.TierPolicy(offered=offered))
            code, text = refusal(stub.SetTierPolicy, asked)
            assert (code, why in text) == (grpc.StatusCode.INVALID_ARGUMENT, True)
        assert list(generation.Generate(request("abc", max_tokens=2)))[-1].HasField("finish")
        service.tell(cluster.turn() | {"tiers": ["skip"]})  # as a controller of a later version might say

        def refused() -> bool:
            try:
                list(generation.Generate(request("abc", max_tokens=1)))
            except grpc.RpcError as error:
                return error.code() is grpc.StatusCode.INVALID_ARGUMENT
            return False

        wait_until(refused, "the policy to reach the gateway")


def test_only_keys_with_the_scope_admin(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    when = "2026-11-22T10:00:00+00:00"
    made = {scope: keys.create(scope.value, [scope], when) for scope in (Scope.admin, Scope.observe)}
    secrets = {scope: secret for scope, (secret, _) in made.items()}
    keys.write(file, [key for _, key in made.values()])
    with administered(keys=str(file)) as (service, _), stub_of(service) as stub:
        call, message = stub.GetPlacement, pb.GetPlacementRequest()
        assert refusal(call, message)[0] is grpc.StatusCode.UNAUTHENTICATED
        weak = (("authorization", f"Bearer {secrets[Scope.observe]}"),)
        assert refusal(call, message, metadata=weak)[0] is grpc.StatusCode.PERMISSION_DENIED
        strong = (("authorization", f"Bearer {secrets[Scope.admin]}"),)
        assert call(message, metadata=strong, timeout=10).nodes


def test_without_keys_it_serves_this_machine_alone() -> None:
    with administered(host="0.0.0.0", insecure=True) as (service, _):
        address = f"127.0.0.1:{service.address.rpartition(':')[2]}"
        with grpc.insecure_channel(address) as channel:
            code, text = refusal(admin_pb2_grpc.AdminStub(channel).GetStats, pb.GetStatsRequest())
        assert (code, "--keys" in text) == (grpc.StatusCode.PERMISSION_DENIED, True)


def test_reflection_lists_it_and_errors_have_details() -> None:
    with administered() as (service, _), grpc.insecure_channel(service.address) as channel:
        listed = ProtoReflectionDescriptorDatabase(channel).get_services()
        assert "moemesh.v1.Admin" in listed
        with pytest.raises(grpc.RpcError) as caught:
            admin_pb2_grpc.AdminStub(channel).Drain(pb.DrainRequest(node="nowhere"))
        details = dict(caught.value.trailing_metadata())
        assert status_pb2.Status.FromString(details["grpc-status-details-bin"]).details


def test_a_controller_that_is_gone_is_unavailable() -> None:
    service = GatewayService(GatewayConfig(port=0), served_model(), "gateway", "127.0.0.1:1")
    service.start()
    try:
        with stub_of(service) as stub:
            assert refusal(stub.GetStats, pb.GetStatsRequest())[0] is grpc.StatusCode.UNAVAILABLE
    finally:
        service.shutdown(grace_s=0.0)
