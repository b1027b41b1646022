"""A relay between the two ends of a sealed link that can do what somebody between two machines can."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress

from cluster.dispatch.frames import PREFIX, PREFIX_BYTES
from cluster.dispatch.kinds import Kind
from support.relay import Relay

TO_SERVER, TO_CLIENT = "to the server", "to the client"

Change = Callable[[str, int, bytes], list[bytes]]
"""(direction, number of the record in it, the record with its length) -> what is passed on in its place."""


def pass_on(direction: str, number: int, record: bytes) -> list[bytes]:
    return [record]


class Tampering(Relay):
    """Passes greetings on as they are, records as `change` says. Set `change` at any time.

    heard: all bytes that passed. passed: records, by direction, of the newest connection. greeted: how many
    connections came so far. inject: plain frames for the client, behind the server's next CHALLENGE.
    """

    def __init__(self, target: str, change: Change = pass_on) -> None:
        super().__init__(target)
        self.change = change
        self.heard = bytearray()
        self.passed = {TO_SERVER: 0, TO_CLIENT: 0}
        self.greeted = 0
        self.inject = b""
        self._lock = threading.Lock()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        direction = TO_SERVER if sink.getpeername()[1] == self._target[1] else TO_CLIENT
        with suppress(OSError, EOFError):
            self._greet(source, sink)
            self.passed[direction] = 0
            while True:
                length = self._take(source, 4)
                record = length + self._take(source, int.from_bytes(length, "little"))
                number = self.passed[direction]
                self.passed[direction] += 1
                for each in self.change(direction, number, record):
                    sink.sendall(each)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def _greet(self, source: socket.socket, sink: socket.socket) -> None:
        """Each side's frames up to the one behind which it seals."""
        while True:
            prefix = self._take(source, PREFIX_BYTES)
            _, _, kind, _, _, _, header, payload = PREFIX.unpack(prefix)
            frame = prefix + self._take(source, header + payload)
            if kind == Kind.CHALLENGE:
                frame, self.inject = frame + self.inject, b""
                self.greeted += 1
            sink.sendall(frame)
            if kind in (Kind.CHALLENGE, Kind.PROOF):
                return

    def _take(self, source: socket.socket, count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = source.recv(count - len(data))
            if not more:
                raise EOFError
            data += more
        with self._lock:
            self.heard += data
        return data


def flip(record: bytes) -> list[bytes]:
    return [record[:-1] + bytes([record[-1] ^ 1])]


def repeat(record: bytes) -> list[bytes]:
    return [record, record]


def drop(record: bytes) -> list[bytes]:
    return []


class Once:
    """Does `what` to record `number` of `direction`, of the first connection on which it comes by.

    done: set when it has.
    """

    def __init__(self, direction: str, number: int, what: Callable[[bytes], list[bytes]]) -> None:
        self.done = threading.Event()
        self._place = (direction, number)
        self._what = what

    def __call__(self, direction: str, number: int, record: bytes) -> list[bytes]:
        if self.done.is_set() or (direction, number) != self._place:
            return [record]
        self.done.set()
        return self._what(record)


class Swap:
    """Passes record `number` of `direction` on behind the one after it, once."""

    def __init__(self, direction: str, number: int) -> None:
        self.done = threading.Event()
        self._direction, self._number = direction, number
        self._held: list[bytes] = []

    def __call__(self, direction: str, number: int, record: bytes) -> list[bytes]:
        if direction != self._direction or self.done.is_set():
            return [record]
        if number == self._number:
            self._held = [record]
            return []
        if self._held and number == self._number + 1:
            self.done.set()
            return [record, *self._held]
        return [record]
