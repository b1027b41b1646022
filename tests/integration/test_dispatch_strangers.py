"""What somebody who does not greet can take of a server: a bounded number of places, for a bounded time."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cluster.dispatch.client import ControlClient
from cluster.dispatch.connection import Connection
from cluster.dispatch.decoder import GREETING_BYTES, FrameDecoder
from cluster.dispatch.frames import PREFIX_BYTES, Frame, pack_header
from cluster.dispatch.handshake import Identity, split_address
from cluster.dispatch.kinds import Kind
from cluster.dispatch.server import FrameServer
from support.expert_nodes import connected, make_call, round_trip, running
from support.frames import echo, serving
from support.gateways import wait_until

KEY = b"k" * 32
NODE = Identity("node", "n", 7, key=KEY)
MEMBER = Identity("tool", "t", key=KEY)
HELLO = pack_header(Kind.HELLO, MEMBER.to_header() | {"nonce": bytes(32)}, 0)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def silent(server: FrameServer, count: int) -> Iterator[list[socket.socket]]:
    """Connections whose other end says nothing."""
    socks = []
    try:
        for _ in range(count):
            socks.append(socket.create_connection(split_address(server.address), timeout=20))  # noqa: PERF401
        yield socks
    finally:
        for sock in socks:
            sock.close()


def ended(sock: socket.socket) -> bool:
    """Whether the server closes it, without a word. Waits for it."""
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


def answer(server: FrameServer, data: bytes) -> list[Frame]:
    """All that comes back for `data` until the server closes the connection."""
    got = b""
    with silent(server, 1) as (sock,):
        sock.sendall(data)
        while more := sock.recv(65536):
            got += more
    return FrameDecoder().feed(got)


def test_1024_silent_connections_leave_room_for_a_member() -> None:
    with (
        serving(echo, identity=NODE, max_strangers=16) as server,
        ControlClient(server.address, identity=MEMBER) as before,
    ):
        before.call(Kind.STATUS, [1])
        for _ in range(8):
            with silent(server, 128):
                wait_until(lambda: server.connections >= 16, "the newest to be there")
                with ControlClient(server.address, identity=MEMBER) as client:
                    assert client.call(Kind.STATUS, [2]).header == [2]
                assert server.strangers <= 16
        assert before.call(Kind.STATUS, [3]).header == [3], "who has greeted is never shed"
        wait_until(lambda: not server.strangers, "the silent ones to be gone")
    assert server.turned.shed >= 8 * (128 - 16)
    assert server.turned.tampered == 0


def test_the_oldest_goes_first() -> None:
    with serving(echo, identity=NODE, max_strangers=3) as server, silent(server, 3) as socks:
        wait_until(lambda: server.strangers == 3, "three strangers")
        with silent(server, 2) as newer:
            assert all(ended(sock) for sock in socks[:2])
            for sock in (socks[2], *newer):
                sock.sendall(HELLO)
                (challenge,) = FrameDecoder().feed(sock.recv(4096))
                assert challenge.kind is Kind.CHALLENGE
    assert server.turned.shed == 2


def test_who_does_not_greet_in_time_is_closed() -> None:
    """Whatever it says meanwhile: nothing, half a greeting, a HELLO again and again."""
    clock = Clock()
    with serving(echo, identity=NODE, greeting_s=5.0, clock=clock) as server:
        with ControlClient(server.address, identity=MEMBER) as member, silent(server, 3) as socks:
            member.call(Kind.STATUS, [1])
            wait_until(lambda: server.strangers == 3, "three strangers")
            clock.now += 4.9
            socks[1].sendall(HELLO[:20])
            socks[2].sendall(HELLO)
            assert socks[2].recv(4096)
            assert server.strangers == 3
            clock.now += 0.2
            server.wake()
            assert all(ended(sock) for sock in socks)
            assert member.call(Kind.STATUS, [2]).header == [2]
        assert server.turned.late == 3
        assert server.strangers == 0


def test_silence_is_noticed_while_a_node_works_for_its_routers() -> None:
    """The thread that waits for the next small dispatch is the one that watches strangers."""
    clock = Clock()
    with running(1) as nodes, connected(nodes) as exchange:
        server = nodes.nodes[nodes.names[0]]._server
        server._strangers._clock = clock
        for step in range(3):
            round_trip(exchange, make_call(2, step=step))
        with silent(server, 1) as (sock,):
            wait_until(lambda: server.strangers == 1, "a stranger")
            for step in range(3, 6):
                round_trip(exchange, make_call(2, step=step))
            clock.now += 60.0
            server.wake()
            assert ended(sock)
        for step in range(6, 9):
            round_trip(exchange, make_call(2, step=step))
        assert exchange.counters.express  # a machine with other work sends some the general way
        assert nodes.nodes[nodes.names[0]].stats()["strangers_turned_away"] == 1


@pytest.mark.parametrize(
    "head",
    [
        pack_header(Kind.HELLO, MEMBER.to_header(), 1),
        pack_header(Kind.HELLO, MEMBER.to_header(), 256 << 20, 1),
        pack_header(Kind.DISPATCH, [], 1000),
        pack_header(Kind.HELLO, {"name": "x" * GREETING_BYTES}, 0),
    ],
    ids=["a byte of payload", "256 MB", "another frame", "a long header"],
)
def test_before_the_greeting_nothing_large_is_taken(head: bytes) -> None:
    with serving(echo, identity=NODE) as server:
        (refused,) = answer(server, head[:PREFIX_BYTES])
    assert refused.kind is Kind.REFUSED
    assert "are accepted" in refused.header["message"]
    assert server.turned.refused == 1


def test_a_greeting_as_long_as_it_may_be_is_taken_in_any_split() -> None:
    longest = Identity("tool", "t" * (GREETING_BYTES - PREFIX_BYTES - 160), key=KEY)
    hello = pack_header(Kind.HELLO, longest.to_header() | {"nonce": bytes(32)}, 0)
    assert GREETING_BYTES - 100 < len(hello) <= GREETING_BYTES
    with serving(echo, identity=NODE) as server, silent(server, 1) as (sock,):
        for at in range(0, len(hello), 777):
            sock.sendall(hello[at : at + 777])
        (challenge,) = FrameDecoder().feed(sock.recv(4096))
        assert challenge.kind is Kind.CHALLENGE


def test_who_speaks_on_before_it_is_answered_is_refused() -> None:
    with serving(echo, identity=NODE) as server:
        for more in (HELLO, pack_header(Kind.STATUS, [], 0), b"x"):
            (refused,) = answer(server, HELLO + more)
            assert "speaks on" in refused.header["message"]


def test_strangers_are_no_business_of_the_owner_s() -> None:
    closed: list[Connection] = []
    with serving(echo, identity=NODE, on_close=closed.append) as server:
        with silent(server, 2):
            wait_until(lambda: server.strangers == 2, "two strangers")
        wait_until(lambda: not server.strangers, "them to be gone")
        with ControlClient(server.address, identity=MEMBER) as client:
            client.call(Kind.STATUS, [1])
        wait_until(lambda: len(closed) == 1, "the member to be gone")
    assert len(closed) == 1
