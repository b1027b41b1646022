"""Sealed links on real sockets, and what somebody between their two ends can do: end them, no more."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cluster.config import WireSecurity
from cluster.dispatch.aio import FrameStream
from cluster.dispatch.client import ControlClient
from cluster.dispatch.connection import Connection
from cluster.dispatch.exchange import Exchange
from cluster.dispatch.frames import Frame, pack_header
from cluster.dispatch.handshake import KEY_VARIABLE, SECURITY_VARIABLE, Identity, cluster_key, wire_security
from cluster.dispatch.kinds import Kind
from cluster.dispatch.seal import Share
from cluster.errors import ProtocolError, Tampered, Unavailable
from support.expert_nodes import Nodes, make_call, round_trip, router, running
from support.frames import echo, serving
from support.tampering import TO_CLIENT, TO_SERVER, Change, Once, Swap, Tampering, drop, flip, repeat

KEY = b"k" * 32
BIG = 16 << 20
SEALED = WireSecurity.always
NODE = Identity("node", "n", 7, library="a" * 64, key=KEY)
CAREFUL = Identity("tool", "t", key=KEY, security=SEALED)


@pytest.fixture
def _always(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """All links of this process's roles are sealed."""
    file = tmp_path / "cluster.key"
    file.write_bytes(KEY)
    monkeypatch.setenv(KEY_VARIABLE, str(file))
    monkeypatch.setenv(SECURITY_VARIABLE, SEALED.value)
    for cached in (cluster_key, wire_security):
        cached.cache_clear()
    yield
    monkeypatch.undo()
    for cached in (cluster_key, wire_security):
        cached.cache_clear()


@contextmanager
def between(server: str) -> Iterator[Tampering]:
    with Tampering(server) as relay:
        yield relay


@pytest.mark.parametrize("who", [CAREFUL, Identity("tool", "t", key=KEY)], ids=["client", "server"])
def test_what_either_side_wants_sealed_nobody_between_can_read(who: Identity) -> None:
    node = NODE if who is CAREFUL else Identity("node", "n", key=KEY, security=SEALED)
    secret = os.urandom(200)
    with (
        serving(echo, identity=node) as server,
        between(server.address) as relay,
        ControlClient(relay.address, identity=who) as client,
    ):
        for number in range(3):
            assert bytes(client.call(Kind.STATUS, [number, secret], secret).payload) == secret
        assert client.server == node
        assert len(relay.heard) > 12 * len(secret)
        for part in (secret, secret[:16], KEY, node.library[:16].encode()):
            assert not part or part not in relay.heard


def test_on_loopback_nothing_is_sealed_unless_somebody_asks_for_it() -> None:
    with serving(echo, identity=NODE) as server, between(server.address) as relay:
        client = ControlClient(server.address, identity=Identity("tool", "t", key=KEY))
        with client:
            client.call(Kind.STATUS, [1])
            assert client._connection is not None
            assert client._connection.at_rest
        assert not relay.heard


@pytest.mark.parametrize("mine", [True, False])
def test_16_mb_pass_both_ways(mine: bool) -> None:
    node = NODE if mine else Identity("node", "n", key=KEY, security=SEALED)
    data = os.urandom(BIG)
    who = CAREFUL if mine else Identity("tool", "t", key=KEY)
    with serving(echo, identity=node) as server:
        with ControlClient(server.address, identity=who) as client:
            for _ in range(2):
                assert bytes(client.call(Kind.SUBMIT, [1], data, timeout_s=60).payload) == data

        async def talk() -> None:
            async with await FrameStream.open(server.address, identity=who) as stream:
                for _ in range(2):
                    await stream.send(Kind.SUBMIT, [2], data)
                    await stream.send(Kind.SUBMIT, [3], b"small")
                    assert bytes((await stream.recv()).payload) == data
                    assert bytes((await stream.recv()).payload) == b"small"

        asyncio.run(talk())


def test_two_sealed_peers_that_send_16_mb_to_each_other_do_not_deadlock() -> None:
    """And what waits to be sent is counted to the byte: at the end nothing does."""
    shares, said = (Share(), Share()), b"said"
    sessions = [
        mine.session(theirs.public, KEY, said, server=bool(number))
        for number, (mine, theirs) in enumerate((shares, shares[::-1]))
    ]
    ends = [Connection(sock) for sock in socket.socketpair()]
    try:
        data, got = os.urandom(BIG), {0: b"", 1: b""}
        for end, session in zip(ends, sessions, strict=True):
            end.admit(session)
            end.send(Kind.RESULT, [1], data)
            end.send(Kind.PONG, [2])
            assert end.blocked
        while not all(got.values()):
            for number, end in enumerate(ends):
                end.flush()
                for frame in end.read():
                    if frame.kind is Kind.RESULT:
                        got[number] = bytes(frame.payload)
        assert got == {0: data, 1: data}
        assert [end.queued_bytes for end in ends] == [0, 0]
        assert not any(end.blocked for end in ends)
    finally:
        for end in ends:
            end.close()


def test_what_has_no_key_seals_nothing_and_says_so() -> None:
    keyless = Identity("node", "n", key=b"")
    with (
        serving(echo, identity=keyless) as server,
        ControlClient(server.address, identity=Identity("tool", "t", key=b"", security=SEALED)) as client,
        pytest.raises(ProtocolError, match="needs the cluster's key"),
    ):
        client.call(Kind.STATUS, [])


def test_a_member_that_does_not_fit_learns_why() -> None:
    other = Identity("router", "r", library="b" * 64, key=KEY, security=SEALED)
    with (
        serving(echo, identity=NODE) as server,
        ControlClient(server.address, identity=other) as client,
        pytest.raises(ProtocolError, match="router r serves library bbbb"),
    ):
        client.call(Kind.STATUS, [])


def changed(way: str, number: int) -> Once:
    return Once(way, number, flip)


def repeated(way: str, number: int) -> Once:
    return Once(way, number, repeat)


def dropped(way: str, number: int) -> Once:
    return Once(way, number, drop)


HARM = (changed, repeated, dropped, Swap)


@pytest.mark.parametrize("way", [TO_SERVER, TO_CLIENT])
@pytest.mark.parametrize("harm", HARM)
def test_a_connection_that_is_tampered_with_ends_and_the_next_one_works(
    harm: Callable[[str, int], Any], way: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Messages of ten records: the harm is done in the middle of one."""
    data = os.urandom(600_000)
    with (
        caplog.at_level(logging.WARNING, logger="cluster"),
        serving(echo, identity=NODE) as server,
        between(server.address) as relay,
        ControlClient(relay.address, identity=CAREFUL) as client,
    ):
        assert bytes(client.call(Kind.SUBMIT, [1], data, timeout_s=30).payload) == data
        relay.change = change = harm(way, 15)
        with pytest.raises(Unavailable) as caught:
            client.call(Kind.SUBMIT, [2], data, timeout_s=30)
        assert change.done.is_set()
        assert isinstance(caught.value, Tampered) == (way == TO_CLIENT)
        assert bytes(client.call(Kind.SUBMIT, [3], data, timeout_s=30).payload) == data
    assert server.turned.tampered == (way == TO_SERVER)
    assert ("the link to t ends: record" in caplog.text) == (way == TO_SERVER)


def test_an_asynchronous_client_meets_the_same_error() -> None:
    async def talk(relay: Tampering) -> None:
        async with await FrameStream.open(relay.address, identity=CAREFUL) as stream:
            await stream.send(Kind.SUBMIT, [1], b"x")
            assert (await stream.recv()).header == [1]
            relay.change = Once(TO_CLIENT, 2, flip)
            await stream.send(Kind.SUBMIT, [2], b"x")
            with pytest.raises(Tampered, match="record 2 of"):
                await stream.recv()
            assert stream.closed

    with serving(echo, identity=NODE) as server, between(server.address) as relay:
        asyncio.run(talk(relay))


def reflected() -> Change:
    """What the client says comes back to it as if the server had said it."""
    said: list[bytes] = []

    def change(direction: str, number: int, record: bytes) -> list[bytes]:
        if direction == TO_SERVER:
            said.append(record)
            return [record]
        return [said[-1]] if said else [record]

    return change


def test_what_a_client_said_is_not_taken_for_an_answer() -> None:
    with (
        serving(echo, identity=NODE) as server,
        between(server.address) as relay,
        ControlClient(relay.address, identity=CAREFUL) as client,
    ):
        client.call(Kind.STATUS, [1])
        relay.change = reflected()
        with pytest.raises(Tampered):
            client.call(Kind.STATUS, [2])


def test_a_record_of_one_connection_is_worth_nothing_on_another() -> None:
    kept: list[bytes] = []

    def keep(direction: str, number: int, record: bytes) -> list[bytes]:
        if direction == TO_SERVER and number == 0:
            kept.append(record)
        return [record]

    def replay(direction: str, number: int, record: bytes) -> list[bytes]:
        return [kept[0]] if direction == TO_SERVER and number == 0 else [record]

    with serving(echo, identity=NODE) as server, between(server.address) as relay:
        for change in (keep, replay):
            relay.change = change
            with ControlClient(relay.address, identity=CAREFUL) as client:
                if change is keep:
                    client.call(Kind.STATUS, [1])
                else:
                    with pytest.raises(Unavailable):
                        client.call(Kind.STATUS, [1])
    assert server.turned.tampered == 1


FORGED = pack_header(Kind.WELCOME, Identity("node", "forged", 9).to_header(), 0)


def test_a_forged_welcome_behind_the_challenge_is_not_believed() -> None:
    """In plain, since whoever forges it has no keys: together with the challenge, and by an eager loop."""
    with serving(echo, identity=NODE) as server, between(server.address) as relay:
        relay.inject = FORGED
        with (
            ControlClient(relay.address, identity=CAREFUL) as client,
            pytest.raises((ProtocolError, Tampered)),
        ):
            client.call(Kind.STATUS, [1])
        relay.inject = FORGED
        with pytest.raises((ProtocolError, Tampered)):
            asyncio.run(FrameStream.open(relay.address, identity=CAREFUL))


@contextmanager
def exchanging(nodes: Nodes, relay: Tampering, **options: Any) -> Iterator[Exchange]:
    """Over all nodes, to the first of them through the relay."""
    addresses = nodes.addresses | {nodes.names[0]: relay.address}
    exchange = Exchange(router(), nodes.shape, nodes.table, addresses, **options)
    try:
        exchange.connect(10.0)
        yield exchange
    finally:
        exchange.close()


@pytest.mark.usefixtures("_always")
def test_a_sealed_dispatch_takes_the_general_way_to_the_same_rows() -> None:
    with running(3) as nodes, between(nodes.addresses[nodes.names[0]]) as relay:
        with exchanging(nodes, relay) as exchange:
            for step, tokens in enumerate([1, 2, 33, 700, 0, 2]):
                round_trip(exchange, make_call(tokens, step=step))
            assert exchange.counters.express == 0
            assert exchange.counters.resends == exchange.counters.stale == 0
        assert relay.heard


@pytest.mark.usefixtures("_always")
@pytest.mark.parametrize("way", [TO_SERVER, TO_CLIENT])
@pytest.mark.parametrize(
    ("harm", "tokens"), [*((each, 6000) for each in HARM), *((each, 3) for each in HARM[:2])]
)
def test_work_on_a_link_that_is_tampered_with_is_asked_again(
    harm: Callable[[str, int], Any], way: str, tokens: int
) -> None:
    """To the same bits. 6,000 tokens take many records, of which the second is harmed; 3 take one. A record
    that is dropped is missed when another one comes."""
    with running(2) as nodes, between(nodes.addresses[nodes.names[0]]) as relay:
        with exchanging(nodes, relay, deadline_s=30.0) as exchange:
            round_trip(exchange, make_call(tokens))
            relay.change = change = harm(way, relay.passed[way] + (tokens > 3))
            step = 0
            while relay.greeted == 1:
                step += 1
                assert step < 50, "the link went on"
                round_trip(exchange, make_call(tokens, step=step))
            assert change.done.is_set()
            round_trip(exchange, make_call(tokens, step=step + 1))
            assert exchange.tampered == (way == TO_CLIENT)
        tampered = nodes.nodes[nodes.names[0]].stats()["links_tampered_with"]
        assert tampered == (way == TO_SERVER)


def test_a_peer_that_is_tampered_with_while_it_answers_loses_that_answer_alone() -> None:
    """The server goes on: a handler's own connection breaks, others do not."""
    seen: list[Frame] = []

    def on_frame(connection: Connection, frame: Frame) -> None:
        seen.append(frame)
        echo(connection, frame)

    with (
        serving(on_frame, identity=NODE) as server,
        between(server.address) as relay,
        ControlClient(server.address, identity=CAREFUL) as straight,
        ControlClient(relay.address, identity=CAREFUL) as around,
    ):
        for client in (straight, around):
            client.call(Kind.STATUS, [0])
        relay.change = Once(TO_SERVER, 1, flip)
        with pytest.raises(Unavailable):
            around.call(Kind.STATUS, [1])
        assert straight.call(Kind.STATUS, [2]).header == [2]
    assert [frame.header for frame in seen] == [[0], [0], [2]]
