"""Health and reflection, as load balancers and grpcurl use them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from cluster.gateway.health import HealthService
from cluster.gateway.service import SERVICES
from support.fake_router import FakeRouter
from support.gateways import gateway, wait_until

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


@pytest.mark.parametrize("name", ["", *SERVICES])
def test_a_service_serves_once_a_router_is_connected(name: str) -> None:
    with gateway({}) as service, grpc.insecure_channel(service.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        asked = health_pb2.HealthCheckRequest(service=name)
        assert health.Check(asked).status == NOT_SERVING
        with FakeRouter() as router:
            service.update({"r0": router.address})
            wait_until(lambda: health.Check(asked).status == SERVING, "SERVING")
        wait_until(lambda: health.Check(asked).status == NOT_SERVING, "NOT_SERVING again")


def test_watchers_see_every_change() -> None:
    with gateway({}) as service, grpc.insecure_channel(service.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        watch = health.Watch(health_pb2.HealthCheckRequest(service=SERVICES[0]))
        assert next(watch).status == NOT_SERVING
        with FakeRouter() as router:
            service.update({"r0": router.address})
            assert next(watch).status == SERVING
        assert next(watch).status == NOT_SERVING
        watch.cancel()


def test_an_unknown_service() -> None:
    with gateway({}) as service, grpc.insecure_channel(service.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        asked = health_pb2.HealthCheckRequest(service="no.such.Service")
        with pytest.raises(grpc.RpcError) as caught:
            health.Check(asked)
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        watch = health.Watch(asked)
        assert next(watch).status == UNKNOWN
        watch.cancel()


def test_all_services_are_listed() -> None:
    with gateway({}) as service, grpc.insecure_channel(service.address) as channel:
        statuses = health_pb2_grpc.HealthStub(channel).List(health_pb2.HealthListRequest()).statuses
        assert set(statuses) == {"", "tiny", *SERVICES}


def test_a_shutdown_is_seen_before_the_port_closes() -> None:
    with (
        FakeRouter() as router,
        gateway({"r0": router.address}) as service,
        grpc.insecure_channel(service.address) as channel,
    ):
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == SERVING
        service.shutdown(grace_s=100.0)  # which a watch does not use up
        assert [answer.status for answer in watch] == [NOT_SERVING]


def ask(channel: grpc.Channel, **question: str) -> reflection_pb2.ServerReflectionResponse:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    requests = iter([reflection_pb2.ServerReflectionRequest(**question)])
    return next(iter(list(stub.ServerReflectionInfo(requests))))


def test_reflection_lists_our_services() -> None:
    with gateway({}) as service, grpc.insecure_channel(service.address) as channel:
        listed = {s.name for s in ask(channel, list_services="").list_services_response.service}
    assert set(SERVICES) <= listed
    assert "grpc.health.v1.Health" in listed


def files_of(channel: grpc.Channel, symbol: str) -> Iterator[descriptor_pb2.FileDescriptorProto]:
    answer = ask(channel, file_containing_symbol=symbol)
    for data in answer.file_descriptor_response.file_descriptor_proto:
        yield descriptor_pb2.FileDescriptorProto.FromString(data)


def test_a_call_by_descriptor_alone() -> None:
    """What grpcurl does: no generated code, only what reflection tells."""
    with (
        FakeRouter() as router,
        gateway({"r0": router.address}) as service,
        grpc.insecure_channel(service.address) as channel,
    ):
        pool = descriptor_pool.DescriptorPool()
        for file in files_of(channel, "moemesh.v1.Generation"):
            pool.Add(file)
        method = pool.FindMethodByName("moemesh.v1.Generation.Generate")
        asked = message_factory.GetMessageClass(method.input_type)(text="abc")
        asked.sampling.max_tokens = 4
        call = channel.unary_stream(
            f"/{method.containing_service.full_name}/{method.name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
        )
        assert "".join(part.text for part in call(asked)) == "abca"


def test_the_model_has_a_status_of_its_own() -> None:
    with (
        FakeRouter() as router,
        gateway({"r0": router.address}) as service,
        grpc.insecure_channel(service.address) as channel,
    ):
        wait_until(lambda: service.ready, "a token")
        stub = health_pb2_grpc.HealthStub(channel)
        assert stub.Check(health_pb2.HealthCheckRequest(service="tiny")).status == SERVING
        with pytest.raises(grpc.RpcError) as caught:
            stub.Check(health_pb2.HealthCheckRequest(service="gpt"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_a_shutdown_during_a_write_is_seen_as_well() -> None:
    health = HealthService(())
    seen: list[int] = []

    class Watcher:
        async def write(self, response: health_pb2.HealthCheckResponse) -> None:
            seen.append(response.status)
            health.close()

    async def main() -> None:
        health.set(True)
        async with asyncio.timeout(20):
            await health.Watch(health_pb2.HealthCheckRequest(), Watcher())  # type: ignore[arg-type]

    asyncio.run(main())
    assert seen == [SERVING, NOT_SERVING]
