"""The exchange against a node whose answers are the test's."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from cluster.balance.placement import PlacementTable, round_robin
from cluster.dispatch.connection import Connection
from cluster.dispatch.exchange import Exchange
from cluster.dispatch.frames import Frame, pack_header
from cluster.dispatch.handshake import Identity
from cluster.dispatch.kinds import Kind
from cluster.dispatch.server import FrameServer
from cluster.errors import MoemeshError, ProtocolError
from cluster.types import NodeId
from support.expert_nodes import (
    LIBRARY,
    SHAPE,
    FakeCompute,
    check,
    make_call,
    round_trip,
    router,
)

Answer = Callable[[Connection, list[object], bytes], None]


@contextmanager
def scripted(answer: Answer) -> Iterator[tuple[PlacementTable, dict[NodeId, str]]]:
    """A node that answers DISPATCH by `answer(connection, header, right payload)`."""

    def on_frame(connection: Connection, frame: Frame) -> None:
        header = frame.header
        rows, counts, experts = (
            header[7],
            np.frombuffer(header[8], np.uint8),
            np.frombuffer(header[9], np.uint8),
        )
        data = np.frombuffer(frame.payload, np.int8, rows * SHAPE.hidden).reshape(rows, SHAPE.hidden)
        scales = np.frombuffer(frame.payload, np.float32, rows, data.size)
        result = FakeCompute().run(header[3], counts, experts.astype(np.int32), data, scales)
        answer(connection, header, result.tobytes())

    name = NodeId("scripted")
    server = FrameServer(on_frame=on_frame, identity=Identity("node", name, 7, LIBRARY))
    address = server.start()
    try:
        yield round_robin(3, 32, [name]), {name: address}
    finally:
        server.shutdown()


@contextmanager
def asking(answer: Answer, **options: float) -> Iterator[Exchange]:
    with scripted(answer) as (table, addresses):
        exchange = Exchange(router(), SHAPE, table, addresses, **options)
        try:
            exchange.connect(10)
            yield exchange
        finally:
            exchange.close()


def tail(data: bytes) -> list[int]:
    return [len(data) // (SHAPE.hidden * 2), 0, 0]


@pytest.mark.parametrize("tokens", [2, 600])
def test_stale_duplicate_and_foreign_replies_touch_nothing(tokens: int) -> None:
    def answer(connection: Connection, header: list[object], data: bytes) -> None:
        poison = b"\xff" * len(data)
        router_inc, node_inc, step, layer, mb, attempt, table = header[:7]
        for wrong in (
            [router_inc, node_inc, step - 1, layer, mb, attempt, table],  # type: ignore[operator]
            [router_inc, node_inc, step, layer, mb, attempt + 1, table],  # type: ignore[operator]
            [router_inc, 8, step, layer, mb, attempt, table],
            [99, node_inc, step, layer, mb, attempt, table],
        ):
            connection.send(Kind.RESULT, [*wrong, *tail(data)], poison)
        connection.send(Kind.RESULT, [*header[:7], *tail(data)], data)
        connection.send(Kind.RESULT, [*header[:7], *tail(data)], poison)

    with asking(answer) as exchange:
        for step in range(1, 6):
            round_trip(exchange, make_call(tokens, step=step))
        assert 20 <= exchange.counters.stale <= 25


def test_replies_of_two_calls_in_reverse_order() -> None:
    kept: list[tuple[list[object], bytes]] = []

    def answer(connection: Connection, header: list[object], data: bytes) -> None:
        kept.append((header, data))
        if len(kept) == 2:
            for old, rows in reversed(kept):
                connection.send(Kind.RESULT, [*old[:7], *tail(rows)], rows)

    with asking(answer) as exchange:
        calls = [make_call(300, micro_batch=mb) for mb in range(2)]
        for call in calls:
            exchange.send(call)
        for call in calls:
            check(SHAPE, call, exchange.wait(0, 0, call.micro_batch))


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (lambda c, h, d: c.send(Kind.RESULT, [*h[:7], *tail(d)], d[:-2]), "bytes of results where"),
        (lambda c, h, d: c.send(Kind.RESULT, [*h[:7], *tail(d)]), "without rows"),
        (lambda c, h, d: c.send(Kind.RESULT, [1], d), "without its numbers"),
        (lambda c, h, d: c.send(Kind.EVENTS, h[:7]), "EVENTS frame where a reply"),
    ],
)
def test_a_node_that_answers_nonsense_is_named(reply: Answer, words: str) -> None:
    with asking(reply) as exchange:
        exchange.send(make_call(2))
        with pytest.raises(ProtocolError, match=f"node scripted .*{words}"):
            exchange.wait(0, 0, 0)


def test_a_connection_that_breaks_in_the_middle_of_a_reply() -> None:
    broken: list[int] = []

    def answer(connection: Connection, header: list[object], data: bytes) -> None:
        if not broken:
            broken.append(1)
            head = pack_header(Kind.RESULT, [*header[:7], *tail(data)], len(data))
            connection.sock.setblocking(True)
            connection.sock.sendall(head + b"\xff" * (len(data) // 2))
            connection.sock.shutdown(socket.SHUT_RDWR)
            return
        connection.send(Kind.RESULT, [*header[:7], *tail(data)], data)

    with asking(answer) as exchange:
        round_trip(exchange, make_call(40))
        assert exchange.counters.resends == 1


def test_a_node_that_is_always_full_is_overloaded_not_lost() -> None:
    def answer(connection: Connection, header: list[object], data: bytes) -> None:
        connection.send(Kind.FAULT, [*header[:7], "Overloaded", "9 rows wait already"])

    with asking(answer, deadline_s=0.3) as exchange:
        exchange.send(make_call(2))
        with pytest.raises(MoemeshError, match="node scripted: 9 rows wait already") as caught:
            exchange.wait(0, 0, 0)
        assert type(caught.value).__name__ == "Overloaded"
        assert exchange.counters.resends >= 2
