"""Connections, server and clients of frames on real sockets."""

from __future__ import annotations

import os
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from cluster.dispatch.client import ControlClient
from cluster.dispatch.connection import Connection
from cluster.dispatch.decoder import FrameDecoder
from cluster.dispatch.frames import FRAGMENT_BYTES, MAGIC, PREFIX, Frame, pack_header
from cluster.dispatch.handshake import Identity
from cluster.dispatch.kinds import Kind
from cluster.dispatch.server import FrameServer
from cluster.errors import InvalidRequest, Overloaded, PortInUse, ProtocolError, Unavailable
from support.frames import echo, serving

BIG = 16 << 20


@contextmanager
def pair(**options: Any) -> Iterator[tuple[Connection, Connection]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        left = socket.create_connection(listener.getsockname())
        right, _ = listener.accept()
    a, b = Connection(left, **options), Connection(right, **options)
    try:
        yield a, b
    finally:
        a.close()
        b.close()


def read_until(connection: Connection, count: int) -> list[Frame]:
    frames: list[Frame] = []
    deadline = time.monotonic() + 20
    while len(frames) < count and time.monotonic() < deadline:
        frames += connection.read()
    assert len(frames) == count
    return frames


def pump(connections: list[Connection], done: Callable[[dict[Connection, list[Frame]]], bool]) -> None:
    """Drive connections as their owners would, in one thread."""
    got: dict[Connection, list[Frame]] = {c: [] for c in connections}
    deadline = time.monotonic() + 30
    with selectors.DefaultSelector() as selector:
        for c in connections:
            selector.register(c, selectors.EVENT_READ)
        while not done(got):
            assert time.monotonic() < deadline, "the peers stand still"
            for c in connections:
                selector.modify(c, selectors.EVENT_READ | (selectors.EVENT_WRITE if c.blocked else 0))
            for key, mask in selector.select(1.0):
                c = key.fileobj
                assert isinstance(c, Connection)
                if mask & selectors.EVENT_WRITE:
                    c.flush()
                if mask & selectors.EVENT_READ:
                    got[c] += c.read()


def test_two_peers_that_send_16_mb_to_each_other_do_not_deadlock() -> None:
    with pair() as (a, b):
        data = os.urandom(BIG)
        for end in (a, b):
            end.send(Kind.RESULT, [1], data)
            assert end.blocked

        def done(got: dict[Connection, list[Frame]]) -> bool:
            return all(len(frames) == 1 and bytes(frames[0].payload) == data for frames in got.values())

        pump([a, b], done)
        assert not a.blocked
        assert a.queued_bytes == b.queued_bytes == 0


def test_a_server_and_a_client_exchange_16_mb_both_ways() -> None:
    data = os.urandom(BIG)
    with serving(echo) as server, ControlClient(server.address) as client:
        for _ in range(2):
            assert bytes(client.call(Kind.SUBMIT, [1], data, timeout_s=30).payload) == data


def test_small_frames_pass_between_the_fragments_of_a_large_one() -> None:
    with pair() as (a, b):
        a.send(Kind.RESULT, ["large"], bytes(BIG))
        a.send(Kind.PONG, ["small"])
        arrived: list[Any] = []

        def done(got: dict[Connection, list[Frame]]) -> bool:
            arrived[:] = [frame.header[0] for frame in got[b]]
            return len(arrived) == 2

        pump([a, b], done)
        assert arrived == ["small", "large"]


def test_large_frames_take_turns() -> None:
    with pair() as (a, b):
        a.send(Kind.RESULT, ["first"], bytes(BIG))
        a.send(Kind.RESULT, ["second"], bytes(2 * FRAGMENT_BYTES))
        arrived: list[Any] = []

        def done(got: dict[Connection, list[Frame]]) -> bool:
            arrived[:] = [frame.header[0] for frame in got[b]]
            return len(arrived) == 2

        pump([a, b], done)
        assert arrived == ["second", "first"]


def test_ordered_kinds_are_not_overtaken() -> None:
    with pair() as (a, b):
        sizes = [BIG, 10, 3 * FRAGMENT_BYTES, 0, 1]
        for number, size in enumerate(sizes):
            a.send(Kind.EVENTS, [number], bytes(size))
        arrived: list[Any] = []

        def done(got: dict[Connection, list[Frame]]) -> bool:
            arrived[:] = [(frame.header[0], len(frame.payload)) for frame in got[b]]
            return len(arrived) == len(sizes)

        pump([a, b], done)
        assert arrived == list(enumerate(sizes))


def test_many_large_frames_stay_within_the_stream_limit() -> None:
    with pair() as (a, b):
        a.send(Kind.RESULT, [-1], bytes(BIG))
        for number in range(100):
            a.send(Kind.RESULT, [number], bytes([number]) * (FRAGMENT_BYTES + 1))
        seen: set[int] = set()

        def done(got: dict[Connection, list[Frame]]) -> bool:
            seen.update(frame.header[0] for frame in got[b])
            assert all(frame.payload[-1] == max(0, frame.header[0]) for frame in got[b])
            return len(seen) == 101

        pump([a, b], done)


def test_what_waits_is_a_copy_of_the_callers_buffer() -> None:
    with pair() as (a, b):
        large, small = bytearray(b"x" * BIG), bytearray(b"y" * 1000)
        a.send(Kind.RESULT, [0], large)
        a.send(Kind.RESULT, [1], small)
        large[:] = bytes(len(large))
        small[:] = bytes(len(small))

        def done(got: dict[Connection, list[Frame]]) -> bool:
            if len(got[b]) < 2:
                return False
            assert {bytes(f.payload[:1]) + bytes(f.payload[-1:]) for f in got[b]} == {b"xx", b"yy"}
            return True

        pump([a, b], done)


def test_the_queue_of_a_peer_that_does_not_read_is_bounded() -> None:
    with pair(max_queued=1 << 20) as (a, b):
        a.send(
            Kind.RESULT, [0], bytes(BIG)
        )  # one message may exceed the bound, or nothing large could be sent
        assert a.blocked
        with pytest.raises(Overloaded, match="does not read"):
            a.send(Kind.RESULT, [1], bytes(100))
        del b


def test_sending_on_a_closed_connection() -> None:
    with pair() as (a, b):
        b.close()
        with selectors.DefaultSelector() as selector:
            selector.register(a, selectors.EVENT_READ)
            assert selector.select(10)
        with pytest.raises(ConnectionError):
            a.read()
        a.close()
        with pytest.raises(Unavailable):
            a.send(Kind.PING, [])


def test_several_threads_may_send() -> None:
    with pair() as (a, b):

        def send(start: int) -> None:
            for number in range(start, start + 200):
                a.send(Kind.RESULT, [number], bytes([number % 251]) * 500)

        threads = [threading.Thread(target=send, args=(200 * n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        got: list[Frame] = []

        def done(frames: dict[Connection, list[Frame]]) -> bool:
            got[:] = frames[b]
            return len(got) == 800

        pump([a, b], done)
        for thread in threads:
            thread.join()
        assert sorted(frame.header[0] for frame in got) == list(range(800))
        assert all(bytes(f.payload) == bytes([f.header[0] % 251]) * 500 for f in got)


def test_a_server_answers_errors_by_name() -> None:
    def on_frame(connection: Connection, frame: Frame) -> None:
        if frame.header == ["own"]:
            raise InvalidRequest("that is not a request")
        raise ZeroDivisionError("a bug")

    with serving(on_frame) as server, ControlClient(server.address) as client:
        with pytest.raises(InvalidRequest, match="not a request"):
            client.call(Kind.SUBMIT, ["own"])
        with pytest.raises(Exception, match="internal error: ZeroDivisionError"):
            client.call(Kind.SUBMIT, ["bug"])
        assert client.call(Kind.PING, [1]).header == [1]


def test_the_server_survives_garbage_and_tells_what_was_wrong() -> None:
    with serving(echo, identity=Identity("node", "n")) as server:
        host, port = server.address.split(":")
        cases = [
            (b"GET / HTTP/1.1\r\nHost: somewhere.example\r\n\r\n", "does not speak moemesh frames"),
            (PREFIX.pack(MAGIC, 9, Kind.HELLO, 0, 0, 0, 1, 0) + b"\x90", "speaks protocol 9"),
            (PREFIX.pack(MAGIC, 1, Kind.DISPATCH, 0, 0, 0, 1, 0) + b"\x90", "before HELLO"),
            (PREFIX.pack(MAGIC, 1, Kind.HELLO, 0, 0, 0, 1, 0) + b"\x90", "broken header"),
            (PREFIX.pack(MAGIC, 1, Kind.HELLO, 1, 0, 0, 1, (1 << 32) - 1) + b"\x90", "payload of 4294967295"),
        ]
        for data, words in cases:
            with socket.create_connection((host, int(port)), timeout=10) as sock:
                sock.sendall(data)
                answer = b""
                while more := sock.recv(65536):
                    answer += more
            (frame,) = FrameDecoder().feed(answer)
            assert frame.kind is Kind.REFUSED
            assert frame.header["error"] == "ProtocolError"
            assert words in frame.header["message"]
        with ControlClient(server.address, identity=Identity("tool", "t")) as client:
            assert client.call(Kind.STATUS, [5]).header == [5]


@pytest.mark.parametrize(
    ("mine", "words"),
    [
        (
            Identity("router", "r", library="b" * 64),
            "router r serves library bbbbbbbbbbbb, node n serves aaaaaaaaaaaa",
        ),
        (Identity("router", "r", numerics=2), "router r computes by numerics 2, node n by 1"),
        (Identity("router", "r", protocol=7), "router r speaks protocol 7"),
    ],
)
def test_a_peer_that_does_not_fit_is_refused_by_name(mine: Identity, words: str) -> None:
    with (
        serving(echo, identity=Identity("node", "n", library="a" * 64)) as server,
        ControlClient(server.address, identity=mine) as client,
        pytest.raises(ProtocolError, match=words),
    ):
        client.call(Kind.STATUS, [])


def test_a_process_of_any_library_may_talk_to_one_that_has_one() -> None:
    node = Identity("node", "n", 77, library="a" * 64)
    tool = Identity("tool", "t")
    with serving(echo, identity=node) as server, ControlClient(server.address, identity=tool) as client:
        client.call(Kind.STATUS, [])
        assert client.server == node


def test_a_client_connects_again_after_the_server_was_away() -> None:
    with serving(echo) as server:
        client = ControlClient(server.address)
        assert client.call(Kind.STATUS, [1]).header == [1]
    port = int(client.address.split(":")[1])
    with pytest.raises(Unavailable):
        client.call(Kind.STATUS, [2])
    with serving(echo, port=port):
        assert client.call(Kind.STATUS, [3]).header == [3]
        client.close()


def test_a_client_gives_up_in_time() -> None:
    with (
        serving(lambda connection, frame: None) as server,
        ControlClient(server.address) as client,
        pytest.raises(Unavailable, match="in time"),
    ):
        client.call(Kind.STATUS, [], timeout_s=0.1)


def test_a_port_in_use_and_a_port_that_is_free_again() -> None:
    with serving(echo) as server:
        port = int(server.address.split(":")[1])
        with pytest.raises(PortInUse, match=str(port)):
            FrameServer(port=port, on_frame=echo).start()
    with serving(echo, port=port):
        pass


def test_on_close_is_called_once_for_every_connection() -> None:
    closed: list[Connection] = []
    with serving(echo, on_close=closed.append) as server:
        with ControlClient(server.address) as first:
            first.call(Kind.STATUS, [])
        second = ControlClient(server.address)
        second.call(Kind.STATUS, [])
    second.close()
    assert len(closed) == len(set(closed)) == 2


def test_nothing_is_left_after_shutdown() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        with serving(echo) as server, ControlClient(server.address) as client:
            client.call(Kind.STATUS, [], bytes(BIG), timeout_s=30)
        server.shutdown()
    never_started = FrameServer(on_frame=echo)
    never_started.shutdown()
    assert len(os.listdir("/proc/self/fd")) == before
    assert not [t for t in threading.enumerate() if t.name == "frames"]


def test_a_prefix_in_two_pieces_reaches_the_server() -> None:
    got: list[Frame] = []
    with serving(lambda connection, frame: (got.append(frame), echo(connection, frame))[1]) as server:
        host, port = server.address.split(":")
        with socket.create_connection((host, int(port)), timeout=10) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            data = pack_header(Kind.STATUS, [1, 2], 3) + b"abc"
            for byte in data:
                sock.send(bytes([byte]))
            decoder = FrameDecoder()
            frames: list[Frame] = []
            while not frames:
                frames = decoder.feed(sock.recv(100))
    assert [bytes(f.payload) for f in frames] == [b"abc"]
    assert len(got) == 1
