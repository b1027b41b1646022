"""What a connection still has to send: messages take turns, a fragment each."""

from __future__ import annotations

from collections import deque

from cluster.dispatch.frames import FRAGMENT_BYTES, MAX_STREAMS, PREFIX_BYTES, PROTOCOL, fragment_prefix
from cluster.dispatch.kinds import FIRST_ORDERED, Kind

COALESCE_BYTES = 64 << 10
COALESCE_BUFFERS = 256
"""Small messages are handed to the socket together up to this much (a system call takes 1,024 buffers)."""


class Message:
    """`head` opens the message; a body of more than 256 KiB follows in fragments, which say `protocol`."""

    __slots__ = ("_at", "body", "head", "kind", "protocol", "stream")

    def __init__(
        self, kind: Kind, head: bytes, body: memoryview, stream: int = 0, protocol: int = PROTOCOL
    ) -> None:
        self.kind = kind
        self.head = head
        self.body = body
        self.stream = stream
        self.protocol = protocol
        self._at = 0

    @property
    def large(self) -> bool:
        return len(self.body) > FRAGMENT_BYTES

    @property
    def wire_bytes(self) -> int:
        fragments = -(-len(self.body) // FRAGMENT_BYTES) if self.large else 0
        return len(self.head) + len(self.body) + fragments * PREFIX_BYTES

    def next_chunk(self) -> tuple[list[bytes | memoryview], bool]:
        """(buffers to write next, whether more follow)."""
        if not self.large:
            return ([self.head, self.body] if len(self.body) else [self.head]), False
        piece = self.body[self._at : self._at + FRAGMENT_BYTES]
        prefix = fragment_prefix(self.kind, self.stream, len(piece), self.protocol)
        chunk: list[bytes | memoryview] = [prefix, piece]
        if self._at == 0:
            chunk.insert(0, self.head)
        self._at += len(piece)
        return chunk, self._at < len(self.body)


class Outbox:
    """Round robin over messages. Ordered kinds (kinds.py) wait for each other; others may overtake.

    Not thread-safe: the connection holds its lock.
    """

    def __init__(self) -> None:
        self._turns: deque[Message] = deque()
        self._ordered: deque[Message] = deque()
        self._large: deque[Message] = deque()
        self._ordered_busy = False
        self._streams = 1  # one is kept free for a large message of an ordered kind

    def __bool__(self) -> bool:
        return bool(self._turns)

    def add(self, message: Message) -> None:
        if message.kind >= FIRST_ORDERED:
            if self._ordered_busy:
                self._ordered.append(message)
                return
            self._ordered_busy = True
        elif message.large:
            if self._streams == MAX_STREAMS:
                self._large.append(message)
                return
            self._streams += 1
        self._turns.append(message)

    def chunk(self) -> list[bytes | memoryview]:
        """The next buffers to write: one fragment, or several small messages together."""
        buffers: list[bytes | memoryview] = []
        size = 0
        while self._turns and size < COALESCE_BYTES and len(buffers) < COALESCE_BUFFERS:
            message = self._turns.popleft()
            some, more = message.next_chunk()
            buffers += some
            size += sum(map(len, some))
            if more:
                self._turns.append(message)
            else:
                self._leave(message)
        return buffers

    def _leave(self, message: Message) -> None:
        if message.kind >= FIRST_ORDERED:
            self._ordered_busy = False
            if self._ordered:
                self.add(self._ordered.popleft())
        elif message.large:
            self._streams -= 1
            if self._large:
                self.add(self._large.popleft())
