"""One non-blocking TCP connection that carries frames. It never waits: whoever owns it owns the waiting."""

from __future__ import annotations

import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from cluster.dispatch import tcp
from cluster.dispatch.decoder import FrameDecoder, GreetingDecoder, Sink
from cluster.dispatch.frames import (
    DEFAULT_LIMITS,
    FRAGMENT_BYTES,
    PROTOCOL,
    Frame,
    Header,
    Limits,
    pack_header,
)
from cluster.dispatch.kinds import Kind
from cluster.dispatch.outbox import Message, Outbox
from cluster.errors import Overloaded, Unavailable

if TYPE_CHECKING:
    from cluster.dispatch.seal import SealedDecoder, Sealer, Session

MAX_QUEUED_BYTES = 256 << 20
Buffer = bytes | bytearray | memoryview
Packed = tuple[Kind, Header, memoryview]
EMPTY = memoryview(b"")


class Connection:
    """Sending is thread-safe and never blocks; reading belongs to one thread.

    A frame is offered to the socket at once. What does not fit is queued (at most `max_queued` bytes beside
    the message that is being sent) and `on_blocked` is called, once, so that the owner waits for the socket
    to be writable and calls `flush()`.

    greeting: the peer is not known yet: it may send small frames, one a turn, until `admit`.
    peer, context, resting: the owner's, e.g. what the peer said in its HELLO.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        limits: Limits = DEFAULT_LIMITS,
        sink: Sink | None = None,
        max_queued: int = MAX_QUEUED_BYTES,
        on_blocked: Callable[[Connection], None] | None = None,
        greeting: bool = False,
    ) -> None:
        sock.setblocking(False)
        tcp.prepare(sock)
        self.sock = sock
        self.fd = sock.fileno()
        self.peer: Any = None
        self.context: Any = None
        self.closed = False
        self.resting = False
        self._limits = limits
        self._sink = sink
        self._greeting = greeting
        self._decoder: FrameDecoder | SealedDecoder = (
            GreetingDecoder() if greeting else FrameDecoder(limits, sink)
        )
        self._sealer: Sealer | None = None
        self._protocol = PROTOCOL
        self._lock = threading.Lock()
        self._outbox = Outbox()
        self._writing: deque[memoryview] = deque()
        self._queued = 0
        self._max_queued = max_queued
        self._on_blocked = on_blocked
        self._streams = 0
        self._announced = False

    def fileno(self) -> int:
        return self.sock.fileno()

    @property
    def blocked(self) -> bool:
        """Whether bytes wait for the socket to become writable."""
        return self._queued > 0

    @property
    def at_rest(self) -> bool:
        """Whether nothing waits to be sent and the next byte received begins a frame, of our own protocol.
        Never so if sealed."""
        ours = self._protocol == PROTOCOL
        return not self.closed and self._queued == 0 and ours and self._decoder.at_rest

    @property
    def queued_bytes(self) -> int:
        return self._queued

    def admit(self, session: Session | None = None, protocol: int = PROTOCOL) -> None:
        """The peer is known: take everything from it, and speak this protocol. With a `session` the link is
        sealed from here on, both ways. For the thread that reads, when it has handled the frame that says so.
        """
        self._protocol = protocol
        if not self._greeting and session is None:
            return
        self._greeting = False
        frames = FrameDecoder(self._limits, self._sink)
        if session is None:
            self._decoder = frames
            return
        self._decoder = session.decoder(frames)
        with self._lock:
            self._sealer = session.sealer()

    def send(self, kind: Kind, header: Header, *buffers: Buffer) -> None:
        """Send one message; `buffers` (C-contiguous) together are its payload, copied if they must wait.

        Raises Unavailable if the connection is closed or breaks, Overloaded if the queue is full.
        """
        if not buffers:
            body = EMPTY
        elif len(buffers) == 1:
            body = memoryview(buffers[0]).cast("B")
        else:
            body = memoryview(b"".join(buffers))
        self.send_body(kind, header, body)

    def send_body(self, kind: Kind, header: Header, body: memoryview, keep: bool = False) -> int:
        """As `send`, with one payload of format "B". Returns the bytes of prefix and header.

        keep: the caller will not write to `body` before it is sent, so it is queued without a copy.
        """
        stream = 0
        size = len(body)
        if size > FRAGMENT_BYTES:
            with self._lock:  # two threads must not take the same number
                stream = self._streams = self._streams % 0xFFFF + 1
        head = pack_header(kind, header, size, stream, self._protocol)
        with self._lock:
            if self.closed:
                raise Unavailable("the connection is closed")
            if self._queued == 0 and not stream:
                first: bytes | bytearray = head
                if self._sealer is not None:
                    first, body, size = self._sealer.seal((head, body)), EMPTY, 0
                try:
                    sent = self.sock.sendmsg((first, body))
                except BlockingIOError:
                    sent = 0
                except OSError as error:
                    raise Unavailable(f"the connection broke: {error}") from error
                if sent == len(first) + size:
                    return len(head)
                self._hold(first, body, sent)
            else:
                self._enqueue(Message(kind, head, body, stream, self._protocol), keep)
        if self._queued:
            self._announce()
        return len(head)

    def send_through(
        self, write: Callable[..., int], args: tuple[Any, ...], message: Callable[[], Packed]
    ) -> None:
        """Send a small message by write(descriptor, *args), which returns the bytes that the socket did not
        take. message() is called if those, or all of it, must be queued.

        Raises as `send`.
        """
        with self._lock:
            direct = not self._queued and not self.closed and self._sealer is None
            if direct:
                left = write(self.fd, *args)
                if left == 0:
                    return
                kind, header, body = message()
                head = pack_header(kind, header, len(body), protocol=self._protocol)
                self._hold(head, body, len(head) + len(body) - left)
        if direct:
            self._announce()
        else:
            self.send_body(*message())

    def resume(self, kind: Kind, header: Header, body: memoryview, sent: int) -> int:
        """As `send_body` of a small message, of which somebody has written the first `sent` bytes to the
        socket of a connection at rest."""
        head = pack_header(kind, header, len(body), protocol=self._protocol)
        with self._lock:
            self._hold(head, body, sent)
        self._announce()
        return len(head)

    def take(self, data: memoryview) -> list[Frame]:
        """As `read`, of bytes that somebody has received from the socket of a connection at rest."""
        return self._decoder.feed(data)

    def read(self) -> list[Frame]:
        """Receive what is there, at most one buffer full of it.

        Raises ConnectionError at the end of the stream, OSError, ProtocolError; close the connection then.
        """
        try:
            count = self.sock.recv_into(self._decoder.buffer())
        except (BlockingIOError, InterruptedError):
            return []
        if count == 0:
            raise ConnectionResetError("the peer closed the connection")
        return self._decoder.advance(count)

    def flush(self) -> bool:
        """Write what the socket takes; True when nothing is left. Raises Unavailable if it is broken."""
        with self._lock:
            return self._pump()

    def close(self) -> None:
        with self._lock:
            if not self.closed:
                self.closed = True
                self._outbox = Outbox()
                self._writing.clear()
                self._queued = 0
                self.sock.close()

    def _announce(self) -> None:
        if not self._announced and self._on_blocked is not None:
            self._announced = True
            self._on_blocked(self)

    def _try(self, buffers: Any) -> int:
        try:
            return self.sock.sendmsg(buffers)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            raise Unavailable(f"the connection broke: {error}") from error

    def _hold(self, head: bytes | bytearray, body: memoryview, sent: int) -> None:
        """Keep the rest of a small frame of which the socket took `sent` bytes."""
        rest = memoryview((head + bytes(body))[sent:])
        self._writing.append(rest)
        self._queued = len(rest)

    def _enqueue(self, message: Message, keep: bool) -> None:
        size = message.wire_bytes
        if self._queued and self._queued + size > self._max_queued:
            raise Overloaded(
                f"{self._queued} bytes wait to be sent and the peer does not read them", retry_after_s=0.1
            )
        if not message.large and not keep:
            message.body = memoryview(bytes(message.body))
        self._queued += size
        self._outbox.add(message)
        self._pump()
        if message.large and not keep and self._queued:
            self._own(message)

    def _own(self, message: Message) -> None:
        """Copy what is left of a large message, now that the socket has taken what it takes at once."""
        borrowed = message.body.obj
        message.body = memoryview(bytes(message.body))
        self._writing = deque(
            memoryview(bytes(piece)) if piece.obj is borrowed else piece for piece in self._writing
        )

    def _pump(self) -> bool:
        while True:
            if not self._writing:
                if not self._outbox:
                    self._announced = False
                    return True
                self._writing.extend(map(memoryview, self._next_chunk()))
            sent = self._try(self._writing)
            if sent == 0:
                return False
            self._queued -= sent
            self._drop(sent)

    def _next_chunk(self) -> Sequence[bytes | bytearray | memoryview]:
        chunk = self._outbox.chunk()
        if self._sealer is None:
            return chunk
        sealed = self._sealer.seal(chunk)
        self._queued += len(sealed) - sum(map(len, chunk))
        return [sealed]

    def _drop(self, sent: int) -> None:
        writing = self._writing
        while sent:
            first = len(writing[0])
            if sent < first:
                writing[0] = writing[0][sent:]
                return
            writing.popleft()
            sent -= first
