"""Streams of frames on an event loop, against the threaded server."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable

import pytest
import uvloop

from cluster.dispatch.aio import FrameStream
from cluster.dispatch.connection import Connection
from cluster.dispatch.frames import Frame
from cluster.dispatch.handshake import Identity
from cluster.dispatch.kinds import Kind
from cluster.errors import ProtocolError, Unavailable
from support.frames import echo, serving

BIG = 16 << 20


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_aio_streams_send_and_receive_large_and_small(run: Callable[..., None]) -> None:
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
        run(talk(server.address))


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_what_can_be_sent_at_once_is_and_nothing_else(run: Callable[..., None]) -> None:
    async def talk(address: str) -> None:
        async with await FrameStream.open(address, identity=Identity("gateway", "g")) as stream:
            assert stream.send_now(Kind.SUBMIT, [0], b"small")
            assert not stream.send_now(Kind.SUBMIT, [1], bytes(BIG)), "it would go in pieces"
            frame = await asyncio.wait_for(stream.recv(), 30)
            assert (frame.header, bytes(frame.payload)) == ([0], b"small")
            stream.pause_writing()
            assert not stream.send_now(Kind.SUBMIT, [2], b""), "the socket's buffer is full"
            stream.resume_writing()
            async with stream._ordered:
                assert not stream.send_now(Kind.SUBMIT, [3], b""), "another is being sent"
        assert not stream.send_now(Kind.SUBMIT, [4], b""), "it is closed"

    with serving(echo, identity=Identity("node", "n")) as server:
        run(talk(server.address))


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


def test_who_gives_up_in_the_middle_of_a_greeting_leaves_no_connection() -> None:
    async def give_up(address: str) -> None:
        opening = asyncio.create_task(FrameStream.open(address, identity=Identity("gateway", "g", 1)))
        connection, _ = await asyncio.get_running_loop().sock_accept(silent)
        with connection:
            assert await asyncio.get_running_loop().sock_recv(connection, 1), "it has begun to greet"
            opening.cancel()
            with pytest.raises(asyncio.CancelledError):
                await opening
            while await asyncio.get_running_loop().sock_recv(connection, 65536):
                pass

    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.setblocking(False)
        asyncio.run(give_up(f"127.0.0.1:{silent.getsockname()[1]}"))
