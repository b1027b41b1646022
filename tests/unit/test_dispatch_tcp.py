"""Connections send at once, and those to other machines are not paced."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from cluster.dispatch import tcp
from cluster.dispatch.frames import Limits
from cluster.dispatch.handshake import Identity
from cluster.dispatch.link import Link
from cluster.dispatch.poller import Poller
from cluster.types import NodeId
from support.frames import echo, serving

AVAILABLE = Path("/proc/sys/net/ipv4/tcp_available_congestion_control")


def test_messages_are_sent_at_once() -> None:
    with socket.socket() as sock:
        tcp.prepare(sock)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_links_on_loopback_are_left_as_they_are() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as sock,
    ):
        before = tcp.congestion_control(sock)
        tcp.prepare(sock)
        assert tcp.congestion_control(sock) == before
        assert not tcp.leaves_the_machine(sock)


@pytest.mark.parametrize("name", ["bbr", "reno"])
def test_bbr_is_replaced_and_nothing_else(name: str) -> None:
    if not AVAILABLE.exists() or name not in AVAILABLE.read_text().split():
        pytest.skip(f"this kernel has no {name}")
    with socket.socket() as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, name.encode())
        assert tcp.congestion_control(sock) == name.encode()
        tcp.unpace(sock)
        assert tcp.congestion_control(sock) in ((b"cubic", b"reno") if name == "bbr" else (b"reno",))


def test_sockets_of_one_machine_are_left_alone() -> None:
    one, other = socket.socketpair()
    with one, other:
        tcp.prepare(one)


def test_a_router_s_link_is_looked_at_when_it_has_connected(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before that nobody knows where it leads."""
    led: list[tuple[str, int]] = []
    monkeypatch.setattr(tcp, "leaves_the_machine", lambda sock: bool(sock.getpeername()))
    monkeypatch.setattr(tcp, "unpace", lambda sock: led.append(sock.getsockname()))
    with serving(echo, identity=Identity("node", "n", 7)) as server:
        poller = Poller()
        link = Link(
            NodeId("n"),
            server.address,
            identity=Identity("router", "r", 1),
            poller=poller,
            limits=Limits(),
            sink=lambda *_: None,
            on_frame=lambda *_: None,
            on_change=lambda _: None,
            on_tampered=lambda: None,
        )
        while not link.ready:
            link.due(time.monotonic())
            for one, mask in poller.wait(1.0):
                one.on_event(mask, time.monotonic())
        assert link.connection is not None
        assert link.connection.sock.getsockname() in led
        link.lose("the test is over")
        poller.close()
