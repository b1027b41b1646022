"""Streams of frames on an event loop, against the threaded server."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Any

import pytest

from cluster.dispatch.aio import FrameStream
from cluster.dispatch.connection import Connection
from cluster.dispatch.decoder import FrameDecoder
from cluster.dispatch.frames import Frame
from cluster.dispatch.handshake import Identity
from cluster.dispatch.kinds import Kind
from cluster.errors import ProtocolError, Unavailable
from support.frames import echo, serving

BIG = 16 << 20


def test_aio_streams_send_and_receive_large_and_small() -> None:
    async def talk(address: str) -> None:
        data = os.urandom(BIG)
        async with await FrameStream.open(address, identity=Identity("gateway", "g")) as stream:
            assert stream.server is not None
            assert stream.server.id == "n"

            async def send() -> None:
                for number in range(3):
                    await stream.send(Kind.SUBMIT, [number], data)
                    await stream.send(Kind.SUBMIT, [number + 100])

            sender = asyncio.create_task(send())
            for number in (0, 100, 1, 101, 2, 102):
                frame = await asyncio.wait_for(stream.recv(), 30)
                assert frame.header == [number]
                assert bytes(frame.payload) == (data if number < 100 else b"")
            await sender

    with serving(echo, identity=Identity("node", "n")) as server:
        asyncio.run(talk(server.address))


def test_aio_errors() -> None:
    async def refused(address: str) -> None:
        with pytest.raises(ProtocolError, match="numerics 3"):
            await FrameStream.open(address, identity=Identity("gateway", "g", numerics=3))
        stream = await FrameStream.open(address)
        await stream.send(Kind.SUBMIT, [])
        frame = await stream.recv()
        assert frame.kind is Kind.REFUSED
        assert "before HELLO" in frame.header["message"]
        with pytest.raises(Unavailable):
            await stream.recv()
        await stream.close()
        with pytest.raises(Unavailable):
            await stream.send(Kind.SUBMIT, [])

    with serving(echo, identity=Identity("node", "n")) as server:
        asyncio.run(refused(server.address))
    with pytest.raises(Unavailable, match="cannot connect"):
        asyncio.run(FrameStream.open(server.address))


def test_aio_does_not_read_ahead_of_its_owner_without_bound() -> None:
    def flood(connection: Connection, frame: Frame) -> None:
        for number in range(200):
            connection.send(Kind.EVENTS, [number], bytes(100_000))

    async def slow(address: str) -> None:
        stream = await FrameStream.open(address)
        await stream.send(Kind.SUBMIT, [])
        await asyncio.sleep(0.2)
        assert stream.ahead_bytes < 4 << 20
        for number in range(200):
            frame = await asyncio.wait_for(stream.recv(), 30)
            assert frame.header == [number]
        await stream.close()

    with serving(flood) as server:
        asyncio.run(slow(server.address))


class ForeignTransport:
    """Of another event loop: it does all that asyncio's do, and is none of them. As uvloop's, which Ray takes
    wherever it is installed."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock, self.written = sock, b""

    def get_extra_info(self, name: str) -> Any:
        return self.sock if name == "socket" else None

    def write(self, data: bytes) -> None:
        self.written += data


def test_transports_of_other_event_loops_are_taken() -> None:
    async def talk(transport: ForeignTransport) -> None:
        stream = FrameStream()
        stream.connection_made(transport)  # type: ignore[arg-type]
        await stream.send(Kind.STATUS, [1], b"x")

    with socket.socket() as sock:
        transport = ForeignTransport(sock)
        asyncio.run(talk(transport))
    (frame,) = FrameDecoder().feed(transport.written)
    assert (frame.header, bytes(frame.payload)) == ([1], b"x")
