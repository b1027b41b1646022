"""Servers of frames with a cluster's key, on real sockets, and every kind of client of theirs."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import socket
from pathlib import Path
from typing import Any

import pytest

from cluster.dispatch.aio import FrameStream
from cluster.dispatch.client import ControlClient
from cluster.dispatch.decoder import FrameDecoder
from cluster.dispatch.frames import pack_header
from cluster.dispatch.greeting import Greeting
from cluster.dispatch.handshake import KEY_VARIABLE, Identity, cluster_key
from cluster.dispatch.kinds import Kind
from cluster.errors import ProtocolError
from support.frames import echo, serving

KEY = b"k" * 32
NODE = Identity("node", "n", 7, library="a" * 64, key=KEY)


def test_a_member_is_served() -> None:
    with serving(echo, identity=NODE) as server:
        with ControlClient(server.address, identity=Identity("tool", "t", key=KEY)) as client:
            assert client.call(Kind.STATUS, [5]).header == [5]
            assert client.server == NODE

        async def talk() -> None:
            async with await FrameStream.open(server.address, identity=Identity("g", "g", key=KEY)) as stream:
                assert stream.server == NODE
                await stream.send(Kind.SUBMIT, [6])
                assert (await stream.recv()).header == [6]

        asyncio.run(talk())


@pytest.mark.parametrize("key", [b"", b"o" * 32])
def test_a_stranger_is_not(key: bytes) -> None:
    stranger = Identity("tool", "t", key=key)
    with serving(echo, identity=NODE) as server:
        with ControlClient(server.address, identity=stranger) as client, pytest.raises(ProtocolError):
            client.call(Kind.STATUS, [5])
        with pytest.raises(ProtocolError):
            asyncio.run(FrameStream.open(server.address, identity=stranger))


@pytest.mark.parametrize(
    "kind", [Kind.PING, Kind.STATUS, Kind.DISPATCH, Kind.SUBMIT, Kind.SHUTDOWN, Kind.PROOF]
)
def test_before_the_greeting_nothing_is_answered(kind: Kind) -> None:
    with serving(echo, identity=NODE) as server:
        host, _, port = server.address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=10) as sock:
            sock.sendall(pack_header(kind, {}, 0))
            answer = b""
            while more := sock.recv(65536):
                answer += more
    (refused,) = FrameDecoder().feed(answer)
    assert refused.kind is Kind.REFUSED
    assert "aaaa" not in str(refused.header)


@pytest.mark.parametrize(
    "change",
    [
        {"incarnation": math.inf},
        {"incarnation": math.nan},
        {"incarnation": 2**32},
        {"incarnation": -1},
        {"numerics": 1e300},
        {"protocol": "1"},
        {"role": 5},
        {"library": None},
    ],
)
def test_a_broken_introduction_ends_one_connection_and_nothing_else(change: dict[str, Any]) -> None:
    header = Identity("tool", "t", key=KEY).to_header() | change
    with serving(echo, identity=NODE) as server:
        host, _, port = server.address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=10) as sock:
            sock.sendall(pack_header(Kind.HELLO, header, 0))
            while sock.recv(65536):
                pass
        with ControlClient(server.address, identity=Identity("tool", "t", key=KEY)) as client:
            assert client.call(Kind.STATUS, [5]).header == [5]


@pytest.mark.parametrize("key", [KEY, b""])
def test_a_connection_greets_once(key: bytes) -> None:
    """A second HELLO would change who the peer is, or have the server compute keys again and again."""
    me = Identity("tool", "t", key=key)
    hello = pack_header(Kind.HELLO, Greeting(me).hello(), 0)
    with serving(echo, identity=dataclasses.replace(NODE, key=key)) as server:
        host, _, port = server.address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=10) as sock:
            sock.sendall(hello)
            answer = sock.recv(65536)
            sock.sendall(hello)
            while more := sock.recv(65536):
                answer += more
    first, second = FrameDecoder().feed(answer)
    assert first.kind in (Kind.CHALLENGE, Kind.WELCOME)
    assert second.kind is Kind.REFUSED


def test_a_server_without_the_key_is_not_trusted() -> None:
    impostor = Identity("controller", "controller")
    with (
        serving(echo, identity=impostor) as server,
        ControlClient(server.address, identity=Identity("node", "n", key=KEY)) as client,
        pytest.raises(ProtocolError, match="key"),
    ):
        client.call(Kind.SYNC, {})


def test_processes_of_a_cluster_find_the_key_in_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cluster.key"
    file.write_bytes(KEY)
    monkeypatch.setenv(KEY_VARIABLE, str(file))
    cluster_key.cache_clear()
    try:
        assert Identity("node", "n").key == KEY
    finally:
        monkeypatch.undo()
        cluster_key.cache_clear()
    assert Identity("node", "n").key == b""
