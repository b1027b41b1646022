"""How many calls a gateway takes at once, on one connection and on all."""

from __future__ import annotations

from contextlib import ExitStack

import grpc
import pytest

from protos import generation_pb2_grpc
from support.fake_router import FakeRouter
from support.gateways import gateway, request, wait_until


def test_a_connection_s_further_calls_wait_at_the_client() -> None:
    with (
        FakeRouter(paused=True) as router,
        gateway({"r0": router.address}, max_streams=3) as service,
        grpc.insecure_channel(service.address) as channel,
    ):
        stub = generation_pb2_grpc.GenerationStub(channel)
        grpc.channel_ready_future(channel).result(timeout=20)
        calls = [stub.Generate(request("abc", max_tokens=1)) for _ in range(8)]
        wait_until(lambda: len(router.counts.submitted) == 3, "as many as may run")
        with grpc.insecure_channel(service.address, [("grpc.use_local_subchannel_pool", 1)]) as another:
            call = generation_pb2_grpc.GenerationStub(another).Generate(request("abc", max_tokens=1))
            wait_until(lambda: len(router.counts.submitted) == 4, "another connection's")
            assert service.stats()["outstanding"] == 4
            router.resume()
            assert sum(len(part.token_ids) for part in call) == 1
        for call in calls:
            assert sum(len(part.token_ids) for part in call) == 1
        assert len(router.counts.submitted) == 9, "those that waited were served"


def test_calls_beyond_the_bound_of_all_are_refused_at_once() -> None:
    with (
        ExitStack() as channels,
        FakeRouter(paused=True) as router,
        gateway({"r0": router.address}, max_calls=4) as service,
    ):
        stubs = []
        for _ in range(2):
            options = [("grpc.use_local_subchannel_pool", 1)]
            channel = channels.enter_context(grpc.insecure_channel(service.address, options))
            stubs.append(generation_pb2_grpc.GenerationStub(channel))
        calls = [stub.Generate(request("abc", max_tokens=1)) for stub in stubs * 2]
        wait_until(lambda: len(router.counts.submitted) == 4, "as many as may be there")
        with pytest.raises(grpc.RpcError) as caught:
            list(stubs[0].Generate(request("abc", max_tokens=1)))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        router.resume()
        for call in calls:
            assert sum(len(part.token_ids) for part in call) == 1
        assert sum(len(part.token_ids) for part in stubs[0].Generate(request("abc", max_tokens=1))) == 1
