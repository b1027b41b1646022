"""Connections send at once, and those to other machines are not paced."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from cluster.dispatch import tcp

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
