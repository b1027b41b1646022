"""A stream that breaks within its window is taken up again: no token is lost, repeated or computed twice."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import grpc
import pytest

from cluster.config import GatewayConfig
from cluster.dispatch.handshake import Identity
from cluster.errors import InvalidRequest, Overloaded, RateLimited
from cluster.gateway.caller import ANYBODY, Caller, set_caller
from cluster.gateway.pool import RouterPool
from cluster.gateway.service import GatewayService
from cluster.gateway.windows import Windows
from cluster.types import EngineRequest, RequestId, RouterId, SamplingParams
from protos import generation_pb2 as pb
from protos import generation_pb2_grpc
from support.fake_router import FakeRouter
from support.gateways import gateway, generation_stub, request, wait_until
from support.relay import Relay

TEXT = "añ漢🙂"  # characters of 1, 2, 3 and 4 bytes: as many tokens
TOKENS = 60


@contextmanager
def paused(**config: float) -> Iterator[tuple[FakeRouter, GatewayService]]:
    with FakeRouter(paused=True) as router, gateway({"r0": router.address}, **config) as service:
        yield router, service


def asked(resume_from: int = 0, window_s: float = 20.0, **fields: object) -> pb.GenerateRequest:
    return request(
        TEXT,
        max_tokens=TOKENS,
        request_id="mine",
        resume_from=resume_from,
        resume_window_s=window_s,
        **fields,
    )


class Reader:
    """Collects one stream, across its parts."""

    def __init__(self) -> None:
        self.text, self.ids, self.logprobs = "", list[int](), list[float]()
        self.reason = pb.FINISH_REASON_UNSPECIFIED

    def take(self, part: pb.GenerateResponse) -> None:
        self.text += part.text
        self.ids += part.token_ids
        self.logprobs += part.logprobs
        if part.HasField("finish"):
            self.reason = part.finish.reason

    def __repr__(self) -> str:
        return f"Reader({vars(self)})"

    def __eq__(self, other: object) -> bool:
        return vars(self) == vars(other)


def undisturbed() -> Reader:
    reader = Reader()
    with (
        FakeRouter() as router,
        gateway({"r0": router.address}) as service,
        generation_stub(service) as stub,
    ):
        for part in stub.Generate(asked()):
            reader.take(part)
    return reader


@pytest.mark.parametrize("seed", range(6))
def test_a_stream_cut_anywhere_goes_on_where_it_was(seed: int) -> None:
    """Cut several times, at places drawn at random, while the router goes on by some tokens."""
    draw, reader = random.Random(seed), Reader()
    cuts = sorted(draw.sample(range(TOKENS), 4))
    with paused() as (router, service):
        for cut in (*cuts, TOKENS):
            with (
                Relay(service.address) as relay,
                grpc.insecure_channel(relay.address) as channel,
            ):
                stream = generation_pb2_grpc.GenerationStub(channel).Generate(asked(len(reader.ids)))
                assert next(stream).start.request_id == "mine"
                wait_until(lambda: len(router.counts.submitted) == 1, "the request")
                _step_to(router, cut)
                while len(reader.ids) < cut:
                    reader.take(next(stream))
                if cut < TOKENS:
                    relay.cut()
                    _step_to(router, cut + draw.randrange(3))
                    continue
                for part in stream:
                    reader.take(part)
        assert len(router.counts.submitted) == 1
        wait_until(lambda: service.stats()["outstanding"] == 0, "the gateway to be done with it")
    assert reader == undisturbed()


def _step_to(router: FakeRouter, tokens: int) -> None:
    while router.counts.submitted[0].sent < tokens:
        router.step()


def test_after_its_window_nothing_is_left() -> None:
    with paused() as (router, service):
        with generation_stub(service) as stub:
            stream = stub.Generate(asked(window_s=0.2))
            next(stream)
            wait_until(lambda: len(router.running) == 1, "the request")
            stream.cancel()
        wait_until(lambda: router.counts.aborted == [1], "the router to be told")
        assert service.stats()["outstanding"] == 0
        router.resume()
        with generation_stub(service) as stub:  # it is generated again then
            parts = list(stub.Generate(asked(resume_from=7)))
        assert sum(len(part.token_ids) for part in parts) == TOKENS - 7
        assert len(router.counts.submitted) == 2


def test_without_a_window_a_disconnect_is_an_abort() -> None:
    with paused() as (router, service), generation_stub(service) as stub:
        stream = stub.Generate(asked(window_s=0.0))
        next(stream)
        wait_until(lambda: len(router.running) == 1, "the request")
        stream.cancel()
        wait_until(lambda: router.counts.aborted == [1], "the router to be told")
        wait_until(lambda: service.stats()["outstanding"] == 0, "the gateway to forget it")


def test_what_ended_while_nobody_read_is_read_later() -> None:
    with paused() as (router, service), generation_stub(service) as stub:
        stream = stub.Generate(asked())
        next(stream)
        wait_until(lambda: len(router.running) == 1, "the request")
        stream.cancel()
        router.resume()
        wait_until(lambda: not router.running, "the router to be done")
        reader = Reader()
        for part in stub.Generate(asked()):
            reader.take(part)
        assert reader == undisturbed()
        assert len(router.counts.submitted) == 1


def test_a_stream_that_still_seems_to_be_there_is_replaced() -> None:
    with paused() as (router, service), generation_stub(service) as stub:
        first = stub.Generate(asked())
        wait_until(lambda: len(router.running) == 1, "the request")
        router.step()
        assert sum(len(part.token_ids) for part in (next(first), next(first))) == 1
        second = stub.Generate(asked(resume_from=1))
        assert next(second).HasField("start")
        assert list(first)[-1].finish.reason == pb.FINISH_REASON_ABORTED
        router.resume()
        assert sum(len(part.token_ids) for part in second) == TOKENS - 1
        assert len(router.counts.submitted) == 1
        wait_until(lambda: service.stats()["outstanding"] == 0, "the gateway to be done with it")


def test_abort_ends_what_waits_for_its_client() -> None:
    with paused() as (router, service), generation_stub(service) as stub:
        stream = stub.Generate(asked())
        next(stream)
        wait_until(lambda: len(router.running) == 1, "the request")
        stream.cancel()
        wait_until(lambda: stub.Abort(pb.AbortRequest(request_id="mine")).aborted, "the abort")
        wait_until(lambda: router.counts.aborted == [1], "the router to be told")
        wait_until(lambda: service.stats()["outstanding"] == 0, "the gateway to forget it")


def test_another_request_of_the_same_name_is_computed_anew() -> None:
    with paused() as (router, service), generation_stub(service) as stub:
        first = stub.Generate(asked())
        next(first)
        wait_until(lambda: len(router.running) == 1, "the request")
        other = stub.Generate(asked(resume_from=1, repetition_penalty=1.5))
        wait_until(lambda: len(router.counts.submitted) == 2, "the other")
        assert router.counts.aborted == [1]
        assert list(first)[-1].finish.reason == pb.FINISH_REASON_ABORTED
        other.cancel()


@pytest.mark.parametrize(
    ("fields", "says"),
    [({"n": 2}, "n = 1"), ({"window_s": 61.0}, "between 0 and 60"), ({"window_s": -1.0}, "between 0")],
)
def test_what_cannot_be_resumed_is_refused(fields: dict[str, object], says: str) -> None:
    with paused() as (router, service), generation_stub(service) as stub:
        with pytest.raises(grpc.RpcError, match=says) as caught:
            list(stub.Generate(asked(**fields)))  # type: ignore[arg-type]
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert not router.counts.submitted


def test_another_key_cannot_take_a_stream_up() -> None:
    """It may have a request of the same name, which is another one."""

    async def main() -> None:
        with FakeRouter(paused=True) as router:
            async with pool_of(router, GatewayConfig()) as pool:
                asked = engine_request("mine")
                set_caller(Caller("owner"))
                ticket = pool.submit(asked, window_s=20.0)
                pool.leave(ticket)
                set_caller(Caller("other"))
                assert pool.resume(asked, window_s=20.0) is None
                assert not pool.abort(asked.request_id)
                set_caller(Caller("owner"))
                assert pool.resume(asked, window_s=20.0) is ticket
            assert pool.outstanding == 1  # a reader has it: it is not the pool's to free
            pool.release(ticket)
            assert pool.outstanding == 0

    asyncio.run(main())


@asynccontextmanager
async def pool_of(router: FakeRouter, config: GatewayConfig) -> AsyncIterator[RouterPool]:
    pool = RouterPool(Identity("gateway", "g", 1), config, lambda _: None)
    pool.update({RouterId("r0"): router.address})
    while not pool.connected:  # noqa: ASYNC110
        await asyncio.sleep(0.002)
    try:
        yield pool
    finally:
        set_caller(ANYBODY)
        await pool.close()


def engine_request(name: str) -> EngineRequest:
    return EngineRequest(RequestId(name), (1, 2), SamplingParams(max_tokens=4))


def test_what_replaces_a_request_has_its_place(caplog: pytest.LogCaptureFixture) -> None:
    """Of its key's limit, in the line and at the router; and the one before is reported."""
    caplog.set_level(logging.INFO, "cluster.gateway.pool")

    async def main() -> None:
        with FakeRouter(paused=True) as router:
            async with pool_of(router, GatewayConfig(window=1, max_queued=1)) as pool:
                set_caller(Caller("owner", concurrent=2))
                running, waiting = (pool.submit(engine_request(name)) for name in ("running", "waiting"))
                for _ in range(2):
                    after = pool.replace(engine_request("waiting"))
                    assert [mailbox.reason for mailbox in waiting.mailboxes] == ["aborted"]
                    pool.release(waiting)  # as its reader does, too late to matter
                    waiting = after
                pool.release(running)
                assert waiting.link is not None
                running = pool.replace(engine_request("waiting"))
                assert running.link is not None
                assert (pool.outstanding, pool.sequences) == (1, 1)
                pool.release(running)
                assert (pool.outstanding, pool.sequences) == (0, 0)

    asyncio.run(main())
    reported = [vars(record)["fields"]["ended"] for record in caplog.records if record.msg == "request"]
    assert reported == ["aborted"] * 5


def test_a_request_goes_on_where_its_replacement_is_refused() -> None:
    async def main() -> None:
        with FakeRouter(paused=True) as router:
            async with pool_of(router, GatewayConfig(window=1, max_queued=1)) as pool:
                mine, other = pool.submit(engine_request("mine")), pool.submit(engine_request("other"))
                with pytest.raises(Overloaded):  # the other waits for the place that would come free
                    pool.replace(engine_request("mine"))
                assert not mine.ended
                pool.release(other)
                set_caller(Caller("busy", requests_per_minute=6))
                slow = pool.submit(engine_request("mine"))
                with pytest.raises(RateLimited):
                    pool.replace(engine_request("mine"))
                assert not slow.ended
                assert pool.outstanding == 2

    asyncio.run(main())


def test_what_its_body_was_charged_for_leaves_no_place_to_its_successor() -> None:
    async def main() -> None:
        with FakeRouter(paused=True) as router:
            async with pool_of(router, GatewayConfig()) as pool:
                set_caller(Caller("owner", concurrent=1))
                with pool.charge_once(2) as charged:
                    part = pool.submit(engine_request("part"), charged=charged)
                    with pytest.raises(RateLimited):
                        pool.replace(engine_request("part"))
                    pool.release(part)
                pool.submit(engine_request("next"))

    asyncio.run(main())


def test_a_name_is_taken_once() -> None:
    async def main() -> None:
        with FakeRouter(paused=True) as router:
            async with pool_of(router, GatewayConfig()) as pool:
                pool.submit(engine_request("mine"))
                with pytest.raises(InvalidRequest, match="'mine' is running"):
                    pool.submit(engine_request("mine"))
                pool.submit(engine_request("other"))
                assert pool.outstanding == 2

    asyncio.run(main())


def test_no_windows_at_all_are_none() -> None:
    async def main() -> None:
        ended: list[str] = []
        windows: Windows[str] = Windows(0, ended.append)
        windows.open("a", 20.0)
        assert (ended, len(windows)) == (["a"], 0)

    asyncio.run(main())


def test_windows_have_a_limit_of_their_own() -> None:
    """A gateway without a line has them, and one that allows none frees what its reader has left."""

    async def main() -> None:
        with FakeRouter(paused=True) as router:
            async with pool_of(router, GatewayConfig(max_queued=0, max_resumable=1)) as pool:
                for name in ("first", "second"):
                    pool.leave(pool.submit(engine_request(name), window_s=20.0))
                assert pool.outstanding == 1
            async with pool_of(router, GatewayConfig(max_resumable=0)) as pool:
                pool.leave(pool.submit(engine_request("third"), window_s=20.0))
                assert pool.outstanding == 0

    asyncio.run(main())


def test_windows_are_bounded_and_end() -> None:
    async def main() -> None:
        ended: list[str] = []
        last = asyncio.Event()

        def let_go(name: str) -> None:
            ended.append(name)
            if name == "d":
                last.set()

        windows: Windows[str] = Windows(2, let_go)
        for name in ("a", "b", "c"):
            windows.open(name, 20.0)
        assert (ended, len(windows)) == (["a"], 2)
        assert windows.close("b")
        assert not windows.close("b")
        windows.open("d", 0.0)
        await last.wait()
        assert ended == ["a", "d"]
        windows.end_all()
        assert (ended, len(windows)) == (["a", "d", "c"], 0)

    asyncio.run(main())
