"""More requests than routers can run: who waits, who is let in, who is refused, who leaves nothing behind."""

from __future__ import annotations

import asyncio
import random
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest

from cluster.config import GatewayConfig
from cluster.dispatch.handshake import Identity
from cluster.errors import NonFinite, Overloaded, Unavailable
from cluster.gateway.caller import ANYBODY, Caller, set_caller, set_time_left
from cluster.gateway.meter import Meter
from cluster.gateway.pool import RouterPool
from cluster.gateway.ticket import Ticket
from cluster.types import EngineRequest, RequestId, SamplingParams
from support.fake_router import FakeRouter

CONFIG = GatewayConfig(window=2, max_queued=8)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def pool_of(
    *routers: FakeRouter, config: GatewayConfig = CONFIG, clock: Clock | None = None
) -> AsyncIterator[RouterPool]:
    pool = RouterPool(Identity("gateway", "g", 1), config, lambda _: None, Meter(clock or Clock()))
    pool.update({f"r{number}": router.address for number, router in enumerate(routers)})  # type: ignore[misc]
    await until(lambda: pool.connected == len(routers))
    try:
        yield pool
    finally:
        await pool.close()


async def until(what: object, seconds: float = 20.0) -> None:
    for _ in range(int(seconds / 0.002)):
        if what():  # type: ignore[operator]
            return
        await asyncio.sleep(0.002)
    raise AssertionError(f"waited {seconds:g} s in vain")


def ask(pool: RouterPool, name: str, tokens: int = 2, priority: int = 0, samples: int = 1) -> Ticket:
    params = SamplingParams(max_tokens=tokens)
    return pool.submit(*[EngineRequest(RequestId(name), (1, 2, 3), params, priority=priority)] * samples)


@contextmanager
def as_key(name: str) -> Iterator[None]:
    set_caller(Caller(name))
    try:
        yield
    finally:
        set_caller(ANYBODY)


def names(router: FakeRouter) -> list[str]:
    return [each.request_id for each in router.counts.submitted]


def test_a_router_is_given_as_many_as_it_runs() -> None:
    async def main() -> None:
        with FakeRouter(paused=True) as router:
            async with pool_of(router) as pool:
                tickets = [ask(pool, str(number)) for number in range(6)]
                await until(lambda: len(router.running) == 2)
                most = 0
                while not all(ticket.ended for ticket in tickets):
                    most = max(most, len(router.running))
                    router.step()
                    await asyncio.sleep(0.002)
                assert most == 2
                assert names(router) == [str(number) for number in range(6)]
                assert [mailbox.received for ticket in tickets for mailbox in ticket.mailboxes] == [2] * 6

    asyncio.run(main())


def test_keys_take_turns_and_priority_goes_first() -> None:
    async def main() -> None:
        with FakeRouter(paused=True) as router:
            async with pool_of(router, config=GatewayConfig(window=1, max_queued=20)) as pool:
                with as_key("greedy"):
                    for number in range(4):
                        ask(pool, f"g{number}")
                with as_key("modest"):
                    for number in range(2):
                        ask(pool, f"m{number}")
                    ask(pool, "urgent", priority=1)
                while len(names(router)) < 7:
                    router.step()
                    await asyncio.sleep(0.002)
                assert names(router) == ["g0", "urgent", "g1", "m0", "g2", "m1", "g3"]

    asyncio.run(main())


def test_what_would_wait_too_long_is_refused_with_the_time_to_come_back() -> None:
    async def main() -> None:
        clock = Clock()
        with FakeRouter(paused=True) as router:
            config = GatewayConfig(window=1, max_queued=100, max_wait_s=3.5, wait_share=9.0)
            async with pool_of(router, config=config, clock=clock) as pool:
                for number in range(4):
                    ask(pool, f"first{number}", tokens=1)
                for _ in range(3):  # the line moves once a second
                    clock.now += 1.0
                    await until(lambda: len(router.running) == 1)
                    before = len(names(router))
                    router.step()
                    await until(lambda before=before: len(names(router)) == before + 1)
                tickets = [ask(pool, f"second{number}") for number in range(3)]
                with pytest.raises(Overloaded, match=r"would wait 4\.0 s and may 3\.5 s") as caught:
                    ask(pool, "fourth")
                assert caught.value.retry_after_s == 0.5
                set_time_left(1.5)
                with pytest.raises(Overloaded, match=r"would wait 4\.0 s and may 1\.5 s"):
                    ask(pool, "hurried")
                pool.release(tickets[0])
                set_time_left(None)
                ask(pool, "fourth")
                assert pool.meter.refused == {"Overloaded": 2}

    asyncio.run(main())


def test_the_wait_is_predicted_by_sequences() -> None:
    """Of four samples each: a request counts for the places that it needs."""

    async def main() -> None:
        clock = Clock()
        with FakeRouter(paused=True) as router:
            config = GatewayConfig(window=4, max_queued=100, max_wait_s=3.5, wait_share=9.0)
            async with pool_of(router, config=config, clock=clock) as pool:
                tickets = [ask(pool, f"first{number}", tokens=1, samples=4) for number in range(4)]
                for turn in range(3):  # four sequences a second
                    clock.now += 1.0
                    await until(lambda turn=turn: len(names(router)) == 4 * (turn + 1))
                    router.step()
                    await until(lambda turn=turn: tickets[turn].ended)
                await until(lambda: len(names(router)) == 16)
                tickets += [ask(pool, f"second{number}", samples=4) for number in range(3)]
                with pytest.raises(Overloaded, match=r"would wait 4\.0 s and may 3\.5 s"):
                    ask(pool, "fourth", samples=4)
                for ticket in tickets:
                    pool.release(ticket)

    asyncio.run(main())


def test_sequences_that_end_together_do_not_make_the_line_look_fast() -> None:
    """Those that began together do: of the times between the turns that they give, all but one are 0."""

    async def main() -> None:
        clock = Clock()
        with FakeRouter(paused=True) as router:
            config = GatewayConfig(window=4, max_queued=100, max_wait_s=9.0, wait_share=0.5)
            async with pool_of(router, config=config, clock=clock) as pool:
                first = [ask(pool, f"first{number}", tokens=1) for number in range(12)]
                for done in (4, 8, 12):
                    await until(lambda: len(router.running) == 4)
                    clock.now += 1.0
                    router.step()
                    await until(lambda done=done: sum(ticket.ended for ticket in first) == done)
                second = [ask(pool, f"second{number}") for number in range(6)]  # two of them wait
                with pytest.raises(Overloaded, match=r"would wait 0\.8 s and may 0\.5 s"):
                    ask(pool, "seventh")
                with pytest.raises(Overloaded):
                    pool.check_place(samples=1, priority=0)
                pool.check_place(samples=1, priority=1)
                for ticket in (*first, *second):
                    pool.release(ticket)

    asyncio.run(main())


def test_failures_are_no_sign_of_how_long_requests_take() -> None:
    """Instant ones, and aborts, do not shorten the wait of those that will be served."""

    async def main() -> None:
        clock = Clock()
        with FakeRouter(paused=True) as router:
            config = GatewayConfig(window=1, max_queued=100, max_wait_s=3.5, wait_share=4.0)
            async with pool_of(router, config=config, clock=clock) as pool:
                await serve_one_a_second(router, pool, clock, 4)
                for number in range(30):
                    failed = ask(pool, f"failed{number}")
                    await until(lambda: len(router.running) == 1)
                    router.fail_running(NonFinite("broken"))
                    await until(lambda failed=failed: failed.ended)
                    pool.release(failed)
                    aborted = ask(pool, f"aborted{number}")
                    await until(lambda: len(router.running) == 1)
                    assert pool.abort(aborted.request_id)
                    pool.release(aborted)
                    await until(lambda: not router.running)
                tickets = [ask(pool, f"waits{number}") for number in range(3)]
                assert not pool.meter.refused
                assert pool.meter.service_s == 1.0
                for ticket in tickets:
                    pool.release(ticket)

    asyncio.run(main())


async def serve_one_a_second(router: FakeRouter, pool: RouterPool, clock: Clock, count: int) -> None:
    """Requests of one token, while others wait."""
    tickets = [ask(pool, f"served{number}", tokens=1) for number in range(count)]
    for ticket in tickets:
        await until(lambda: len(router.running) == 1)
        clock.now += 1.0
        router.step()
        await until(lambda ticket=ticket: ticket.ended)
        pool.release(ticket)


def test_a_refusal_says_which_bound_was_met() -> None:
    async def main() -> None:
        with FakeRouter(paused=True) as router:
            async with pool_of(router, config=GatewayConfig(window=1, max_queued=4)) as pool:
                with as_key("greedy"):
                    for number in range(3):
                        ask(pool, f"g{number}")
                    with pytest.raises(Overloaded, match="this key has 2 sequences waiting and 2 places are"):
                        ask(pool, "g3")
                with as_key("modest"):
                    ask(pool, "m0")
                with as_key("late"), pytest.raises(Overloaded, match="3 sequences wait here and 4 may"):
                    ask(pool, "l", samples=2)

    asyncio.run(main())


def test_whoever_leaves_the_line_is_never_heard_of() -> None:
    async def main() -> None:
        with FakeRouter(paused=True) as router:
            async with pool_of(router, config=GatewayConfig(window=1, max_queued=8)) as pool:
                first, gone, aborted, last = (
                    ask(pool, name) for name in ("first", "gone", "aborted", "last")
                )
                await until(lambda: len(router.running) == 1)
                pool.release(gone)
                assert pool.abort(RequestId("aborted"))
                end = aborted.mailboxes[0].poll()
                assert end is not None
                assert end.end is not None
                assert end.end.reason == "aborted"
                pool.release(first)  # a running one that goes makes room as well
                await until(lambda: names(router) == ["first", "last"])
                pool.release(last)
                pool.release(aborted)
                assert (pool.outstanding, pool.queued, pool.sequences) == (0, 0, 0)

    asyncio.run(main())


def test_without_any_router_the_line_is_told() -> None:
    async def main() -> None:
        with FakeRouter(paused=True) as router:
            async with pool_of(router, config=GatewayConfig(window=1, max_queued=8)) as pool:
                running, waiting = (ask(pool, name) for name in ("running", "waiting"))
                await until(lambda: len(router.running) == 1)
                router.kill()
                await until(lambda: pool.connected == 0)
                with pytest.raises(Unavailable, match="send the request again"):
                    waiting.mailboxes[0].poll()
                assert not running.ended  # it had its turn, and waits for a router to go on
                with pytest.raises(Unavailable):
                    ask(pool, "another")

    asyncio.run(main())


def test_samples_of_one_request_stay_together() -> None:
    async def main() -> None:
        with FakeRouter(paused=True) as router, FakeRouter(paused=True) as second:
            async with pool_of(router, second, config=GatewayConfig(window=2, max_queued=8)) as pool:
                params = SamplingParams(max_tokens=1)
                ask(pool, "one")
                three = [EngineRequest(RequestId("three"), (1,), params) for _ in range(3)]
                ticket = pool.submit(*three)
                await until(lambda: len(router.running) + len(second.running) == 4)
                assert {len(router.running), len(second.running)} == {1, 3}
                assert ticket.link is not None
                assert len(set(ticket.numbers)) == 3

    asyncio.run(main())


def test_counts_can_be_read_from_another_thread() -> None:
    """They walk over nothing that the loop changes."""
    stop, wrong = threading.Event(), list[Exception]()

    def read(pool: RouterPool) -> None:
        while not stop.is_set():
            try:
                _ = pool.outstanding, pool.queued, pool.sequences, pool.connected
            except RuntimeError as error:
                wrong.append(error)
                return

    async def main() -> None:
        with FakeRouter(paused=True) as router:
            async with pool_of(router, config=GatewayConfig(window=1, max_queued=200)) as pool:
                reader = threading.Thread(target=read, args=(pool,))
                reader.start()
                try:
                    for turn in range(40):
                        tickets = [ask(pool, f"{turn} {number}") for number in range(20)]
                        for ticket in tickets:
                            pool.release(ticket)
                finally:
                    stop.set()
                    reader.join()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        asyncio.run(main())
    finally:
        sys.setswitchinterval(interval)
    assert not wrong


@pytest.mark.parametrize("seed", range(4))
def test_counts_are_those_of_a_walk_over_all_requests(seed: int) -> None:
    """Whatever happens to requests, in whatever order."""
    draw = random.Random(seed)

    async def main() -> None:
        tickets: list[Ticket] = []
        with FakeRouter(paused=True) as router:
            async with pool_of(router, config=GatewayConfig(window=3, max_queued=50)) as pool:
                for number in range(60):
                    match draw.choice(("ask", "ask", "step", "release", "abort")):
                        case "ask":
                            tickets.append(ask(pool, str(number), tokens=draw.randrange(1, 4)))
                        case "step":
                            router.step()
                            await asyncio.sleep(0.002)
                        case "release" if tickets:
                            pool.release(tickets.pop(draw.randrange(len(tickets))))
                        case "abort" if tickets:
                            pool.abort(draw.choice(tickets).request_id)
                    boxes = [mailbox for ticket in tickets for mailbox in ticket.mailboxes]
                    assert pool.queued == sum(not mailbox.started for mailbox in boxes)
                    assert pool.sequences == sum(not mailbox.ended for mailbox in boxes)
                    assert pool.outstanding == len(tickets)

    asyncio.run(main())
