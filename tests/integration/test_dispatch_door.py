"""A server whose process has run out of descriptors hangs up on callers and goes on serving its peers."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

import pytest

from cluster.dispatch.client import ControlClient
from cluster.dispatch.door import Door
from cluster.dispatch.frames import pack_header
from cluster.dispatch.handshake import split_address
from cluster.dispatch.kinds import Kind
from cluster.errors import PortInUse
from support.frames import echo, serving


@contextmanager
def no_descriptors_left() -> Iterator[None]:
    """Every number below a lowered limit is taken."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/proc/self/fd")))
    with ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 8, hard))
        with suppress(OSError):
            while True:
                stack.callback(os.close, os.open(os.devnull, os.O_RDONLY))
        with pytest.raises(OSError, match="Too many open files"):
            os.dup(0)
        yield


def ended(sock: socket.socket) -> bool:
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True


def test_callers_are_hung_up_on_while_descriptors_lack_and_served_afterwards() -> None:
    question = pack_header(Kind.STATUS, {}, 0)
    with serving(echo) as server, ExitStack() as stack:
        peer, *callers = [stack.enter_context(socket.socket()) for _ in range(4)]
        for sock in (peer, *callers):
            sock.settimeout(20)
        peer.connect(split_address(server.address))
        peer.sendall(question)
        assert peer.recv(1000)
        with no_descriptors_left():
            for caller in callers:
                caller.connect(split_address(server.address))
            assert all(map(ended, callers))
            peer.sendall(question)
            assert peer.recv(1000)
        with ControlClient(server.address) as later:
            assert later.call(Kind.STATUS, {"n": 3}).header["n"] == 3


def test_a_door_without_callers_waits_for_none_and_closes_twice() -> None:
    door = Door("127.0.0.1", 0)
    try:
        assert door.accept() is None
        port = int(door.address.rpartition(":")[2])
        with pytest.raises(PortInUse, match=f"port {port} on 127.0.0.1 is in use"):
            Door("127.0.0.1", port)
    finally:
        door.close()
        door.close()
