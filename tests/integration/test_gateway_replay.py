"""A gateway whose router is lost in the middle of streams: another one goes on with them, token by token."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest

from cluster.config import GatewayConfig
from cluster.dispatch.handshake import Identity
from cluster.dispatch.kinds import Kind
from cluster.errors import MoemeshError, Overloaded, RouterLost, Unavailable
from cluster.experiments.live.relay import Relay
from cluster.gateway.caller import ANYBODY, Caller, set_caller
from cluster.gateway.pool import RouterPool
from cluster.gateway.replay import MOST_LOSSES
from cluster.gateway.service import GatewayService
from cluster.types import EngineRequest, RequestId, RouterId, SamplingParams
from protos import generation_pb2 as pb
from support.fake_router import FakeRouter
from support.gateways import gateway, generation_stub, request, wait_until

TOKENS = 24
ASKED: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampled, alternatives": {"temperature": 1.0, "seed": 2, "top_logprobs": 2},
    "three samples": {"temperature": 1.0, "seed": 7, "n": 3},
    "until a stop string": {"stop": ["漢🙂añ漢🙂"]},
}


def asked(name: str, **fields: Any) -> pb.GenerateRequest:
    return request("añ漢🙂", max_tokens=TOKENS, request_id=name, **ASKED[name], **fields)


def read(parts: Iterable[pb.GenerateResponse]) -> dict[int, list[Any]]:
    """Of each sample its text, ids, logprobs, alternatives, and how it ended."""
    found: dict[int, list[Any]] = {}
    for part in parts:
        one = found.setdefault(part.index, ["", [], [], [], None])
        one[0] += part.text
        one[1] += part.token_ids
        one[2] += part.logprobs
        one[3] += [(tuple(each.token_ids), tuple(each.logprobs)) for each in part.alternatives]
        if part.HasField("finish"):
            usage = part.finish.usage
            one[4] = (part.finish.reason, part.finish.stop, usage.prompt_tokens, usage.completion_tokens)
    return found


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, dict[int, list[Any]]]:
    with (
        FakeRouter() as router,
        gateway({"r0": router.address}) as service,
        generation_stub(service) as stub,
    ):
        return {name: read(stub.Generate(asked(name))) for name in ASKED}


@contextmanager
def two_routers(**config: Any) -> Iterator[tuple[FakeRouter, FakeRouter, GatewayService]]:
    """The gateway knows the first; the test tells it of the second."""
    with (
        FakeRouter(paused=True) as first,
        FakeRouter(paused=True) as second,
        gateway({"r0": first.address}, **config) as service,
    ):
        yield first, second, service


def tell_of_both(first: str, second: FakeRouter, service: GatewayService) -> None:
    service.update({"r0": first, "r1": second.address})
    wait_until(lambda: service.stats()["routers"] == 2, "the second router")


@pytest.mark.parametrize("steps", [0, 1, 5, TOKENS - 1])
def test_all_streams_go_on_at_the_other_router(undisturbed: dict[str, Any], steps: int) -> None:
    with two_routers() as (first, second, service), generation_stub(service) as stub:
        streams = {name: stub.Generate(asked(name)) for name in ASKED}
        wait_until(lambda: len(first.running) == 6, "all sequences")
        tell_of_both(first.address, second, service)
        for _ in range(steps):
            first.step()
        left = len(first.running)
        if not steps:
            assert left == 6
        first.kill()
        wait_until(
            lambda: len(second.running) == service.stats()["replayed"] > 0, "them to come to the second"
        )
        assert service.stats()["replayed"] <= 6
        second.resume()
        for name, stream in streams.items():
            assert read(stream) == undisturbed[name], name
        wait_until(lambda: service.stats()["outstanding"] == 0, "the gateway to be done")


def test_a_score_is_asked_for_again() -> None:
    with two_routers() as (first, second, service), generation_stub(service) as stub:
        score = stub.Score.future(pb.ScoreRequest(text="abcde"))
        embedding = stub.Embed.future(pb.EmbedRequest(text="abcd"))
        wait_until(lambda: len(first.running) == 2, "them")
        tell_of_both(first.address, second, service)
        first.kill()
        second.resume()
        assert len(score.result(20).logprobs) == 4
        assert len(embedding.result(20).values) == 4


def test_a_router_that_falls_silent_is_lost_and_never_heard_again(undisturbed: dict[str, Any]) -> None:
    """Its link carries nothing; when it does again, the tokens of the past reach nobody."""
    with (
        FakeRouter(paused=True) as first,
        FakeRouter() as second,
        Relay(first.address) as relay,
        gateway({"r0": relay.address}) as service,
        generation_stub(service) as stub,
    ):
        stream = stub.Generate(asked("greedy"))
        wait_until(lambda: len(first.running) == 1, "the request")
        tell_of_both(relay.address, second, service)
        first.step()
        relay.cut()
        first.step()
        assert read(stream) == undisturbed["greedy"]
        relay.mend()
        wait_until(lambda: not first.running, "the first to notice that its gateway has hung up")
        wait_until(lambda: service.stats()["routers"] == 2, "the first to be reached again")
        first.resume()
        assert read(stub.Generate(asked("until a stop string"))) == undisturbed["until a stop string"]


def test_without_another_router_it_waits_for_the_same_one(undisturbed: dict[str, Any]) -> None:
    with (
        FakeRouter(paused=True) as router,
        gateway({"r0": router.address}) as service,
        generation_stub(service) as stub,
    ):
        stream = stub.Generate(asked("three samples"))
        wait_until(lambda: len(router.running) == 3, "the request")
        router.step()
        router.kill()
        wait_until(lambda: service.stats()["routers"] == 0, "the loss")
        with pytest.raises(grpc.RpcError, match="no router"):  # new ones are told at once
            list(stub.Generate(asked("greedy")))
        with FakeRouter(port=int(router.address.rpartition(":")[2])):
            assert read(stream) == undisturbed["three samples"]


def test_nobody_waits_for_longer_than_the_window() -> None:
    with (
        FakeRouter(paused=True) as router,
        gateway({"r0": router.address}, replay_s=0.3) as service,
        generation_stub(service) as stub,
    ):
        stream = stub.Generate(asked("greedy"))
        wait_until(lambda: len(router.running) == 1, "the request")
        for _ in range(3):
            router.step()
        router.kill()
        with pytest.raises(grpc.RpcError, match=r"within 0.3 s.*3 tokens were sent") as caught:
            list(stream)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        wait_until(lambda: service.stats()["outstanding"] == 0, "the gateway to forget it")


def test_a_request_that_loses_every_router_is_given_up() -> None:
    """Each token that it gets in between gives it new chances."""
    with (
        FakeRouter(paused=True) as router,
        gateway({"r0": router.address}) as service,
        generation_stub(service) as stub,
    ):
        stream = stub.Generate(asked("greedy"))
        for loss in range(1 + MOST_LOSSES + 1):
            wait_until(lambda: len(router.running) == 1, "the request")
            if loss == 1:
                router.step()
            ((connection, _),) = router.running
            connection.send(Kind.EVENTS, {"e": "nonsense"})
            wait_until(lambda: not router.running, "the loss")
        with pytest.raises(grpc.RpcError, match="4 routers were lost in a row") as caught:
            list(stream)
        assert caught.value.code().name == RouterLost.code
        assert len(router.counts.submitted) == 1 + MOST_LOSSES + 1
        router.resume()
        wait_until(lambda: service.stats()["routers"] == 1, "the gateway to connect again")
        assert list(stub.Generate(asked("greedy")))[-1].HasField("finish")


def with_pool(routers: list[FakeRouter], use: Callable[[RouterPool], Any], **config: Any) -> None:
    async def main() -> None:
        pool = RouterPool(Identity("gateway", "g", 1), GatewayConfig(**config), lambda _: None)
        pool.update({RouterId(f"r{i}"): router.address for i, router in enumerate(routers)})
        await until(lambda: pool.connected == len(routers))
        try:
            await use(pool)
        finally:
            set_caller(ANYBODY)
            await pool.close()
            assert (pool.outstanding, pool.sequences) == (0, 0)

    asyncio.run(main())


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not what():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


def engine_request(name: str) -> EngineRequest:
    return EngineRequest(RequestId(name), (1, 2), SamplingParams(max_tokens=4))


def test_they_are_ahead_of_the_line_and_are_charged_once() -> None:
    async def use(pool: RouterPool) -> None:
        set_caller(Caller("owner", concurrent=4, requests_per_minute=30))
        tickets = [pool.submit(engine_request(name)) for name in ("a", "b")]
        waiting = [pool.submit(engine_request(name)) for name in ("c", "d")]
        await until(lambda: len(one.running) == len(other.running) == 1)
        lost, left = (one, other) if tickets[0].link is not tickets[1].link else (other, one)
        await asyncio.to_thread(lost.kill)
        await until(lambda: len(left.running) == 2)  # beyond the window, while the line waits
        assert {each.request_id for each in left.running.values()} == {"a", "b"}
        assert pool.queued == 4
        left.resume()
        for ticket in [*tickets, *waiting]:
            await until(lambda ticket=ticket: ticket.ended)
            pool.release(ticket)
        pool.release(pool.submit(engine_request("e")))  # the key's places are free again

    with FakeRouter(paused=True) as one, FakeRouter(paused=True) as other:
        with_pool([one, other], use, window=1)


def test_only_the_samples_that_have_not_ended_go_on() -> None:
    async def use(pool: RouterPool) -> None:
        short, long = (EngineRequest(RequestId("a"), (1, 2), SamplingParams(max_tokens=n)) for n in (1, 3))
        ticket = pool.submit(short, long)
        await until(lambda: len(one.running) + len(other.running) == 2)
        lost, left = (one, other) if one.running else (other, one)
        lost.step()
        await until(lambda: ticket.mailboxes[0].ended)
        await asyncio.to_thread(lost.kill)
        left.resume()
        await until(lambda: ticket.ended)
        assert [each.asked.emitted for each in left.counts.submitted] == [(1,)]
        assert [mailbox.ids for mailbox in ticket.mailboxes] == [(1,), (1, 2, 1)]
        pool.release(ticket)

    with FakeRouter(paused=True) as one, FakeRouter(paused=True) as other:
        with_pool([one, other], use)


def test_what_nobody_wants_any_more_waits_for_no_router() -> None:
    async def use(pool: RouterPool) -> None:
        tickets = [pool.submit(engine_request(name)) for name in ("aborted", "left", "kept")]
        await until(lambda: len(router.running) == 3)
        await asyncio.to_thread(router.kill)
        await until(lambda: pool.connected == 0)
        assert pool.abort(RequestId("aborted"))
        pool.leave(tickets[1])
        with FakeRouter(port=int(router.address.rpartition(":")[2])) as again:
            await until(lambda: tickets[2].ended)
            assert [each.request_id for each in again.counts.submitted] == ["kept"]
        for ticket in tickets:
            pool.release(ticket)

    with FakeRouter(paused=True) as router:
        with_pool([router], use)


def test_a_reader_that_comes_back_during_the_wait_gets_every_token_once() -> None:
    async def use(pool: RouterPool) -> None:
        first = pool.submit(engine_request("a"), window_s=20.0)
        await until(lambda: len(router.running) == 1)
        for _ in range(2):
            router.step()
        await until(lambda: first.mailboxes[0].received == 2)
        assert (await first.mailboxes[0].take()).token_ids == [1, 2]
        await asyncio.to_thread(router.kill)
        await until(lambda: pool.connected == 0)
        pool.leave(first)
        ticket = pool.resume(engine_request("a"), window_s=20.0)
        assert ticket is first
        with FakeRouter(port=int(router.address.rpartition(":")[2])) as again:
            await until(lambda: ticket.ended)
            assert [each.asked.emitted for each in again.counts.submitted] == [(1, 2)]
        batch = await ticket.mailboxes[0].take()
        assert batch.token_ids == [1, 2, 1, 2]
        assert batch.end is not None
        pool.release(ticket)

    with FakeRouter(paused=True) as router:
        with_pool([router], use)


def test_a_gateway_that_stops_waits_for_no_router() -> None:
    async def use(pool: RouterPool) -> None:
        tickets = [pool.submit(engine_request("waiting"))]
        await until(lambda: len(router.running) == 1)
        await asyncio.to_thread(router.kill)
        await until(lambda: pool.connected == 0)
        await pool.close()
        with pytest.raises(Unavailable, match="stops"):
            tickets[0].mailboxes[0].poll()
        pool.release(tickets[0])

    with FakeRouter(paused=True) as router:
        with_pool([router], use)


@pytest.mark.parametrize("error", [Overloaded("full"), Unavailable("not ready yet")], ids=lambda e: e.code)
def test_a_router_that_refuses_one_is_asked_again(error: MoemeshError) -> None:
    async def use(pool: RouterPool) -> None:
        ticket = pool.submit(engine_request("a"))
        await until(lambda: len(lost.running) == 1)
        lost.step()
        await until(lambda: ticket.mailboxes[0].received == 1)
        pool.update({RouterId("r0"): lost.address, RouterId("r1"): left.address})
        await until(lambda: pool.connected == 2)
        await asyncio.to_thread(lost.kill)
        await until(lambda: left.counts.refused == 2)
        assert not ticket.ended
        left.accept()
        await until(lambda: ticket.ended)
        assert ticket.mailboxes[0].ids == (1, 2, 1, 2)
        assert pool.meter.replayed == 1
        pool.release(ticket)

    with FakeRouter(paused=True) as lost, FakeRouter(refuse=error) as left:
        with_pool([lost], use)


def test_another_router_takes_what_one_refuses() -> None:
    async def use(pool: RouterPool) -> None:
        ticket = pool.submit(engine_request("a"))
        await until(lambda: len(lost.running) == 1)
        addresses = [lost.address, full.address, free.address]
        pool.update({RouterId(f"r{i}"): address for i, address in enumerate(addresses)})
        await until(lambda: pool.connected == 3)
        await asyncio.to_thread(lost.kill)
        await until(lambda: ticket.ended)
        assert (full.counts.refused, len(free.counts.submitted)) == (1, 1)
        pool.release(ticket)

    with FakeRouter(paused=True) as lost, FakeRouter(most=0) as full, FakeRouter() as free:
        with_pool([lost], use)


def test_samples_of_which_a_router_refuses_one_wait_together() -> None:
    """What it had taken is aborted there: nothing runs twice."""

    async def use(pool: RouterPool) -> None:
        samples = [engine_request("a")] * 3
        ticket = pool.submit(*samples)
        await until(lambda: len(lost.running) == 3)
        pool.update({RouterId("r0"): lost.address, RouterId("r1"): left.address})
        await until(lambda: pool.connected == 2)
        await asyncio.to_thread(lost.kill)
        await until(lambda: left.counts.refused > 0 and not left.running)
        left.accept()
        await until(lambda: len(left.running) == 3)
        left.resume()
        await until(lambda: ticket.ended)
        assert [mailbox.ids for mailbox in ticket.mailboxes] == [(1, 2, 1, 2)] * 3
        pool.release(ticket)

    with FakeRouter(paused=True) as lost, FakeRouter(paused=True, most=2) as left:
        with_pool([lost], use)


def test_one_that_is_refused_for_too_long_ends_with_the_reason() -> None:
    async def use(pool: RouterPool) -> None:
        ticket = pool.submit(engine_request("a"))
        await until(lambda: len(lost.running) == 1)
        pool.update({RouterId("r0"): lost.address, RouterId("r1"): full.address})
        await until(lambda: pool.connected == 2)
        new = pool.submit(engine_request("new"))
        with pytest.raises(Overloaded, match="full"):  # it has lost no router
            await new.mailboxes[0].take()
        pool.release(new)
        await asyncio.to_thread(lost.kill)
        with pytest.raises(Overloaded, match="full"):
            await ticket.mailboxes[0].take()
        pool.release(ticket)

    with FakeRouter(paused=True) as lost, FakeRouter(most=0) as full:
        with_pool([lost], use, replay_s=0.3)
