"""Frames: a fixed prefix of 16 bytes, a msgpack header, raw little-endian tensor bytes.

    prefix   magic "mM" | protocol u8 | kind u8 | flags u8 | 0 u8 | stream u16 | header bytes u32 | payload bytes u32

A payload of at most 256 KiB follows its header at once. A larger one is opened by a frame with flag OPEN, which
carries the header and the length of the whole payload but none of it, and follows in frames with flag
FRAGMENT and the same stream number; frames of other streams pass between them.

Every length is checked against its bound before anything is allocated. Nothing but msgpack is decoded.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgpack

from cluster.dispatch.kinds import Kind
from cluster.errors import ProtocolError

PROTOCOL = 1
MAGIC = b"mM"
PREFIX = struct.Struct("<2sBBBBHII")
PREFIX_BYTES = PREFIX.size

WHOLE, OPEN, FRAGMENT = 0, 1, 2

FRAGMENT_BYTES = 256 << 10
MAX_HEADER_BYTES = 1 << 20
MAX_PAYLOAD_BYTES = 256 << 20
MAX_STREAMS = 32
"""Fragmented messages that may be open at once on a connection; senders hold further ones back."""

STAGING_BYTES = 64 << 10

Header = list[Any] | dict[str, Any]
Sink = Callable[[Kind, Any, int], memoryview | None]
"""(kind, header, payload bytes > 0) -> where the payload goes, or None to read it and throw it away."""

_KINDS = {int(kind): kind for kind in Kind}


class Frame:
    """One received message. `payload` is writable and belongs to the receiver; `overhead` is what the message
    took on the wire beside it, in bytes."""

    __slots__ = ("header", "kind", "overhead", "payload")

    def __init__(self, kind: Kind, header: Any, payload: memoryview, overhead: int) -> None:
        self.kind = kind
        self.header = header
        self.payload = payload
        self.overhead = overhead

    def __repr__(self) -> str:
        return f"Frame({self.kind.name}, {self.header!r:.80}, {self.payload.nbytes} bytes)"


@dataclass(frozen=True)
class Limits:
    """What a connection accepts from its peer, in bytes."""

    header: int = MAX_HEADER_BYTES
    payload: int = MAX_PAYLOAD_BYTES


DEFAULT_LIMITS = Limits()


def pack_header(kind: Kind, header: Header, payload_bytes: int, stream: int = 0) -> bytes:
    """Prefix and header of a message, OPEN if its payload must go in fragments.

    Raises ProtocolError if the header is larger than any peer accepts.
    """
    packed: bytes = msgpack.packb(header)
    if len(packed) > MAX_HEADER_BYTES:
        raise ProtocolError(
            f"a {kind.name} header of {len(packed)} bytes exceeds {MAX_HEADER_BYTES}; send it as payload"
        )
    flags = WHOLE if payload_bytes <= FRAGMENT_BYTES else OPEN
    return PREFIX.pack(MAGIC, PROTOCOL, kind, flags, 0, stream, len(packed), payload_bytes) + packed


def fragment_prefix(kind: Kind, stream: int, count: int) -> bytes:
    return PREFIX.pack(MAGIC, PROTOCOL, kind, FRAGMENT, 0, stream, 0, count)


def accepted(protocol: int) -> bool:
    """Protocol N speaks with N and N - 1, so that a fleet can be upgraded a process at a time."""
    return max(1, PROTOCOL - 1) <= protocol <= PROTOCOL


class _Body:
    """A message whose payload is being received: `filled` of `size` bytes are there, `until` end this frame."""

    __slots__ = ("filled", "header", "kind", "overhead", "size", "target", "until")

    def __init__(self, kind: Kind, header: Any, target: memoryview | None, size: int, overhead: int) -> None:
        self.kind = kind
        self.header = header
        self.target = target
        self.size = size
        self.overhead = overhead
        self.filled = 0
        self.until = 0


class FrameDecoder:
    """Bytes in, frames out, in any split.

    Receive into `buffer()`, then tell `advance()` how many bytes came; large payloads are received straight
    into the buffer that `sink` chose. Not thread-safe. After a ProtocolError the stream cannot be resumed.
    """

    def __init__(self, limits: Limits = DEFAULT_LIMITS, sink: Sink | None = None) -> None:
        self._limits = limits
        self._sink = sink
        self._staging = memoryview(bytearray(STAGING_BYTES))
        self._start = self._end = 0
        self._direct = False
        self._prefix: tuple[Kind, int, int, int, int] | None = None
        self._body: _Body | None = None
        self._streams: dict[int, _Body] = {}

    def buffer(self) -> memoryview:
        """Where the next bytes must be written; never empty."""
        body = self._body
        if body is not None and body.target is not None:  # staging is empty inside a body
            self._direct = True
            return body.target[body.filled : body.until]
        self._direct = False
        return self._staging[self._end :]

    def advance(self, count: int) -> list[Frame]:
        """`count` bytes were written to the last `buffer()`. Raises ProtocolError, naming what was wrong."""
        frames: list[Frame] = []
        if self._direct:
            body = self._body
            assert body is not None
            body.filled += count
            if body.filled == body.until:
                self._finish(body, frames)
            return frames
        self._end += count
        while self._step(frames):
            pass
        self._compact()
        return frames

    def feed(self, data: bytes | bytearray | memoryview) -> list[Frame]:
        """Copying form of buffer() and advance()."""
        frames: list[Frame] = []
        rest = memoryview(data).cast("B")
        while rest:
            room = self.buffer()
            count = min(len(room), len(rest))
            room[:count] = rest[:count]
            rest = rest[count:]
            frames += self.advance(count)
        return frames

    def _step(self, frames: list[Frame]) -> bool:
        """Consume one element of what is staged; False if it is not all there."""
        available = self._end - self._start
        if self._body is not None:
            return available > 0 and self._take_payload(self._body, available, frames)
        if self._prefix is None:
            if available < PREFIX_BYTES:
                return False
            self._prefix = self._read_prefix()
            self._start += PREFIX_BYTES
            available -= PREFIX_BYTES
        if available < self._prefix[3]:
            return False
        self._begin(self._prefix, frames)
        self._prefix = None
        return True

    def _read_prefix(self) -> tuple[Kind, int, int, int, int]:
        magic, protocol, number, flags, zero, stream, header_bytes, payload_bytes = PREFIX.unpack_from(
            self._staging, self._start
        )
        if magic != MAGIC:
            raise ProtocolError(f"the peer does not speak moemesh frames (it sent {magic!r})")
        if protocol != PROTOCOL and not accepted(protocol):
            raise ProtocolError(
                f"the peer speaks protocol {protocol}, this process speaks {PROTOCOL}; "
                "upgrade the older one, at most one version at a time"
            )
        kind = _KINDS.get(number)
        if kind is None:
            raise ProtocolError(f"unknown frame kind {number} in protocol {protocol}")
        if zero or flags > FRAGMENT:
            raise ProtocolError(f"unknown flags {flags}, {zero} on a {kind.name} frame")
        if flags or header_bytes > self._limits.header or payload_bytes > FRAGMENT_BYTES:
            self._check_lengths(kind, flags, stream, header_bytes, payload_bytes)
        return kind, flags, stream, header_bytes, payload_bytes

    def _check_lengths(self, kind: Kind, flags: int, stream: int, header: int, payload: int) -> None:
        if header > self._limits.header:
            raise ProtocolError(
                f"a {kind.name} frame announces a header of {header} bytes; at most {self._limits.header} are accepted"
            )
        bound = self._limits.payload if flags == OPEN else FRAGMENT_BYTES
        if payload > bound:
            raise ProtocolError(
                f"a {kind.name} frame announces a payload of {payload} bytes; at most {bound} are accepted"
            )
        if flags == OPEN:
            if payload <= FRAGMENT_BYTES or stream in self._streams or len(self._streams) >= MAX_STREAMS:
                raise ProtocolError(f"a {kind.name} frame opens stream {stream}, which it may not")
        elif flags == FRAGMENT:
            body = self._streams.get(stream)
            if body is None or header or not 0 < payload <= body.size - body.filled:
                raise ProtocolError(f"a {kind.name} fragment of {payload} bytes does not fit stream {stream}")

    def _begin(self, prefix: tuple[Kind, int, int, int, int], frames: list[Frame]) -> None:
        kind, flags, stream, header_bytes, payload_bytes = prefix
        if flags == FRAGMENT:
            body = self._streams[stream]
            body.until = body.filled + payload_bytes
            body.overhead += PREFIX_BYTES
            self._body = body
            return
        header = self._read_header(kind, header_bytes)
        overhead = PREFIX_BYTES + header_bytes
        if payload_bytes == 0:
            frames.append(Frame(kind, header, _EMPTY, overhead))
            return
        if payload_bytes > self._limits.payload:
            raise ProtocolError(
                f"a {kind.name} payload of {payload_bytes} bytes; at most {self._limits.payload} are accepted"
            )
        target: memoryview | None
        if self._sink is None:
            target = memoryview(bytearray(payload_bytes))
        else:
            target = self._sink(kind, header, payload_bytes)
        body = _Body(kind, header, target, payload_bytes, overhead)
        if flags == OPEN:
            self._streams[stream] = body
        else:
            body.until = payload_bytes
            self._body = body

    def _read_header(self, kind: Kind, count: int) -> Any:
        start = self._start
        self._start += count
        try:
            header = msgpack.unpackb(self._staging[start : self._start], ext_hook=_refuse_extension)
        except (ValueError, msgpack.UnpackException) as error:
            raise ProtocolError(f"the header of a {kind.name} frame is not msgpack: {error}") from error
        if type(header) is not list and type(header) is not dict:
            raise ProtocolError(f"the header of a {kind.name} frame is a {type(header).__name__}")
        return header

    def _take_payload(self, body: _Body, available: int, frames: list[Frame]) -> bool:
        count = min(available, body.until - body.filled)
        if body.target is not None:
            body.target[body.filled : body.filled + count] = self._staging[self._start : self._start + count]
        self._start += count
        body.filled += count
        if body.filled == body.until:
            self._finish(body, frames)
        return True

    def _finish(self, body: _Body, frames: list[Frame]) -> None:
        """The current frame's payload is in; emit the message if that was the last of it."""
        self._body = None
        if body.filled < body.size:
            return
        if body.size > FRAGMENT_BYTES:
            for stream, other in self._streams.items():
                if other is body:
                    del self._streams[stream]
                    break
        if body.target is not None:
            frames.append(Frame(body.kind, body.header, body.target, body.overhead))

    def _compact(self) -> None:
        """Move what is left to the front of a staging buffer that has room for the header it belongs to."""
        staged = self._staging[self._start : self._end]
        needed = PREFIX_BYTES if self._prefix is None else self._prefix[3]
        if needed > len(self._staging):
            self._staging = memoryview(bytearray(needed))
        elif needed <= STAGING_BYTES < len(self._staging) and len(staged) < STAGING_BYTES:
            self._staging = memoryview(bytearray(STAGING_BYTES))
        if staged:
            self._staging[: len(staged)] = staged
        self._start, self._end = 0, len(staged)


_EMPTY = memoryview(b"")


def _refuse_extension(code: int, data: bytes) -> Any:
    raise ValueError(f"extension type {code} is not part of the protocol")
