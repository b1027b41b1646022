"""Order and bounds of what waits between a router and a stream."""

from __future__ import annotations

import asyncio

import pytest

from cluster.errors import NodeLost, ProtocolError
from cluster.gateway.mailbox import Bell, End, Mailbox
from cluster.types import RequestId


def mailbox(max_tokens: int = 4) -> Mailbox:
    return Mailbox(RequestId("r"), max_tokens)


def test_everything_that_came_is_taken_at_once_in_order() -> None:
    async def main() -> None:
        box = mailbox()
        box.token(5, -0.5)
        box.token(6, -0.25)
        batch = await box.take()
        assert (batch.token_ids, batch.logprobs, batch.end) == ([5, 6], [-0.5, -0.25], None)
        box.finish(End("length", 1, 2))
        assert (await box.take()).end == End("length", 1, 2)

    asyncio.run(main())


def test_a_waiting_reader_is_woken() -> None:
    async def main() -> None:
        box = mailbox()
        reader = asyncio.create_task(box.take())
        await asyncio.sleep(0)
        box.token(5, 0.0)
        assert (await reader).token_ids == [5]

    asyncio.run(main())


def test_tokens_before_an_error_are_delivered_first() -> None:
    async def main() -> None:
        box = mailbox()
        box.token(5, 0.0)
        box.fail(NodeLost("gone"))
        assert (await box.take()).token_ids == [5]
        for _ in range(2):
            with pytest.raises(NodeLost):
                await box.take()

    asyncio.run(main())


def test_a_router_cannot_fill_it_beyond_max_tokens() -> None:
    async def main() -> None:
        box = mailbox(max_tokens=2)
        for token in range(5):
            box.token(token, 0.0)
        assert (await box.take()).token_ids == [0, 1]
        with pytest.raises(ProtocolError, match="more than the 2"):
            await box.take()

    asyncio.run(main())


def test_nothing_changes_after_the_end() -> None:
    async def main() -> None:
        box = mailbox()
        box.finish(End("aborted", 1, 0))
        box.token(5, 0.0)
        box.fail(NodeLost("late"))
        batch = await box.take()
        assert (batch.token_ids, batch.end) == ([], End("aborted", 1, 0))

    asyncio.run(main())


def test_a_new_reader_gets_everything_again() -> None:
    box = Mailbox(RequestId("r"), max_tokens=3, keep=True)
    box.token(1, -1.0)
    assert box.poll() is not None
    box.token(2, -2.0)
    box.rewind(Bell(), prompt_tokens=5)
    batch = box.poll()
    assert batch is not None
    assert (batch.token_ids, batch.logprobs, batch.end) == ([1, 2], [-1.0, -2.0], None)
    box.token(3, -3.0)
    box.finish(End("length", 5, 3))
    assert box.poll() is not None
    for _ in range(2):  # also after the end was read
        box.rewind(Bell(), prompt_tokens=5)
        batch = box.poll()
        assert batch is not None
        assert (batch.token_ids, batch.end) == ([1, 2, 3], End("length", 5, 3))
        assert box.poll() is None


def test_what_its_reader_had_enough_of_ends_for_the_next_one_too() -> None:
    box = Mailbox(RequestId("r"), max_tokens=3, keep=True)
    box.token(1, -1.0)
    box.close("stop")
    box.rewind(Bell(), prompt_tokens=5)
    batch = box.poll()
    assert batch is not None
    assert batch.end == End("stop", 5, 1)
