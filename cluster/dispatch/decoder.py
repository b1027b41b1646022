"""From bytes in any split to frames; every length is checked against its bound before it is allocated."""

from __future__ import annotations

import abc
import struct
from collections.abc import Callable
from typing import Any

import msgpack

from cluster.dispatch.frames import (
    DEFAULT_LIMITS,
    FRAGMENT,
    FRAGMENT_BYTES,
    MAGIC,
    MAX_STREAMS,
    OPEN,
    PREFIX,
    PREFIX_BYTES,
    PROTOCOL,
    WHOLE,
    Frame,
    Limits,
    accepted,
    lead_of,
)
from cluster.dispatch.kinds import Kind
from cluster.errors import ProtocolError

STAGING_BYTES = 64 << 10
GREETING_BYTES = 4 << 10
"""Of a frame of the greeting, prefix included; it carries no payload."""

Sink = Callable[[Kind, Any, int], tuple[memoryview, Any] | None]
"""(kind, header, payload bytes > 0) -> where the payload goes and the frame's context, or None to read the
payload and throw it away."""

_KINDS = {int(kind): kind for kind in Kind}
_LEADS = {lead_of(kind): kind for kind in Kind}
_LEAD = struct.Struct("<IHHII")
"""The same bytes read faster: magic, protocol and kind as one number, both flag bytes as another."""


class _Body:
    """A message whose payload is coming: of `size` bytes `filled` are there; `until` ends this frame."""

    __slots__ = ("filled", "frame", "size", "target", "until")

    def __init__(self, frame: Frame, target: memoryview | None, size: int) -> None:
        self.frame = frame
        self.target = target
        self.size = size
        self.filled = 0
        self.until = 0


class Decoder(abc.ABC):
    """Bytes in, frames out: write into `buffer()`, then tell `advance()` how many came."""

    @abc.abstractmethod
    def buffer(self) -> memoryview:
        """Where the next bytes must be written; never empty."""

    @abc.abstractmethod
    def advance(self, count: int) -> list[Frame]:
        """`count` bytes were written to the last `buffer()`. Raises what its class says."""

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


class FrameDecoder(Decoder):
    """Bytes in, frames out, in any split.

    Receive into `buffer()`, then tell `advance()` how many bytes came; large payloads are received straight
    into the buffer that `sink` chose. Not thread-safe. After a ProtocolError the stream cannot be resumed.
    """

    def __init__(
        self, limits: Limits = DEFAULT_LIMITS, sink: Sink | None = None, staging_bytes: int = STAGING_BYTES
    ) -> None:
        self._max_header = limits.header
        self._max_payload = limits.payload
        self._max_whole = min(limits.payload, FRAGMENT_BYTES)
        self._sink: Sink = sink or _allocate
        self._room = staging_bytes
        self._staging = memoryview(bytearray(staging_bytes))
        self._end = 0
        self._direct = False
        self._prefix: tuple[int, ...] | None = None
        self._body: _Body | None = None
        self._streams: dict[int, _Body] = {}

    @property
    def at_rest(self) -> bool:
        """Whether the next byte begins a frame, with no fragmented message open."""
        return self._body is None and self._prefix is None and self._end == 0 and not self._streams

    def buffer(self) -> memoryview:
        """Where the next bytes must be written; never empty."""
        body = self._body
        if body is not None and body.target is not None:  # staging is empty inside a body
            self._direct = True
            return body.target[body.filled : body.until]
        self._direct = False
        return self._staging[self._end :] if self._end else self._staging

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
        staging = self._staging
        start, end = 0, self._end + count
        while True:
            if self._body is not None:
                if start == end:
                    break
                start += self._fill(self._body, staging[start:end], frames)
                continue
            prefix = self._prefix
            if prefix is None:
                if end - start < PREFIX_BYTES:
                    break
                prefix = _LEAD.unpack_from(staging, start)
                if (
                    prefix[0] not in _LEADS
                    or prefix[1]
                    or prefix[3] > self._max_header
                    or prefix[4] > self._max_whole
                ):
                    self._check(staging[start : start + PREFIX_BYTES])
                start += PREFIX_BYTES
            if end - start < prefix[3]:
                self._prefix = prefix
                break
            self._prefix = None
            start = self._begin(prefix, start, end, frames)
        if start == end and self._prefix is None and len(staging) == self._room:
            self._end = 0
        else:
            self._keep(start, end)
        return frames

    def _check(self, prefix: memoryview) -> None:
        """Refuse a prefix by name, unless it belongs to a fragmented message or the protocol before ours."""
        magic, protocol, number, flags, zero, stream, header_bytes, payload_bytes = PREFIX.unpack(prefix)
        if magic != MAGIC:
            raise ProtocolError(f"the peer does not speak moemesh frames (it sent {magic!r})")
        if not accepted(protocol, number):
            raise ProtocolError(
                f"the peer speaks protocol {protocol}, this process speaks {PROTOCOL}; "
                "upgrade the older one, at most one version at a time"
            )
        kind = _KINDS.get(number)
        if kind is None:
            raise ProtocolError(f"unknown frame kind {number} in protocol {protocol}")
        if zero or flags > FRAGMENT:
            raise ProtocolError(f"unknown flags {flags}, {zero} on a {kind.name} frame")
        if header_bytes > self._max_header:
            raise _too_long(kind, "header", header_bytes, self._max_header)
        bound = self._max_payload if flags == OPEN else self._max_whole
        if payload_bytes > bound:
            raise _too_long(kind, "payload", payload_bytes, bound)
        if flags == OPEN:
            if (
                payload_bytes <= FRAGMENT_BYTES
                or stream in self._streams
                or len(self._streams) >= MAX_STREAMS
            ):
                raise ProtocolError(f"a {kind.name} frame opens stream {stream}, which it may not")
        elif flags == FRAGMENT:
            body = self._streams.get(stream)
            if body is None or header_bytes or not 0 < payload_bytes <= body.size - body.filled:
                raise ProtocolError(
                    f"a {kind.name} fragment of {payload_bytes} bytes does not fit stream {stream}"
                )

    def _begin(self, prefix: tuple[int, ...], start: int, end: int, frames: list[Frame]) -> int:
        """Start the message or fragment of a checked prefix, whose header is staged at `start`; returns where
        what was not used begins."""
        lead, flags, stream, header_bytes, payload_bytes = prefix
        if flags == FRAGMENT:
            body = self._streams[stream]
            body.until = body.filled + payload_bytes
            body.frame.overhead += PREFIX_BYTES
            self._body = body
            return start
        kind = _LEADS.get(lead) or _KINDS[lead >> 24]
        middle = start + header_bytes
        staging = self._staging
        try:
            header = msgpack.unpackb(staging[start:middle], ext_hook=_refuse_extension)
        except (ValueError, msgpack.UnpackException) as error:
            raise ProtocolError(f"the header of a {kind.name} frame is not msgpack: {error}") from error
        if type(header) is not list and type(header) is not dict:
            raise ProtocolError(f"the header of a {kind.name} frame is a {type(header).__name__}")
        frame = Frame(kind, header, _EMPTY, PREFIX_BYTES + header_bytes)
        if payload_bytes == 0:
            frames.append(frame)
            return middle
        target = None
        wanted = self._sink(kind, header, payload_bytes)
        if wanted is not None:
            target, frame.context = wanted
        last = middle + payload_bytes
        if last <= end and flags == WHOLE:
            if target is not None:
                target[:] = staging[middle:last]
                frame.payload = target
                frames.append(frame)
            return last
        body = _Body(frame, target, payload_bytes)
        if flags == OPEN:
            self._streams[stream] = body
        else:
            body.until = payload_bytes
            self._body = body
        return middle

    def _fill(self, body: _Body, staged: memoryview, frames: list[Frame]) -> int:
        count = min(len(staged), body.until - body.filled)
        if body.target is not None:
            body.target[body.filled : body.filled + count] = staged[:count]
        body.filled += count
        if body.filled == body.until:
            self._finish(body, frames)
        return count

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
            body.frame.payload = body.target
            frames.append(body.frame)

    def _keep(self, start: int, end: int) -> None:
        """Move what is left to the front of a staging buffer that has room for the header it belongs to."""
        if start == end and self._prefix is None:
            self._end = 0
            if len(self._staging) > self._room:
                self._staging = memoryview(bytearray(self._room))
            return
        staged = self._staging[start:end]
        needed = PREFIX_BYTES if self._prefix is None else self._prefix[3]
        if needed > len(self._staging):
            self._staging = memoryview(bytearray(needed))
        self._staging[: len(staged)] = staged
        self._end = len(staged)


class GreetingDecoder(FrameDecoder):
    """Of a connection whose peer is not known yet: small frames, and one a turn.

    Who speaks on without having heard the answer may be somebody else, between the two.
    """

    def __init__(self) -> None:
        limits = Limits(header=GREETING_BYTES - PREFIX_BYTES, payload=0)
        super().__init__(limits, staging_bytes=GREETING_BYTES)

    def advance(self, count: int) -> list[Frame]:
        frames = super().advance(count)
        if frames and (len(frames) > 1 or not self.at_rest):
            raise ProtocolError("the peer speaks on before it was answered")
        return frames


_EMPTY = memoryview(b"")


def _allocate(kind: Kind, header: Any, count: int) -> tuple[memoryview, Any]:
    return memoryview(bytearray(count)), None


def _too_long(kind: Kind, what: str, announced: int, bound: int) -> ProtocolError:
    return ProtocolError(
        f"a {kind.name} frame announces a {what} of {announced} bytes; at most {bound} are accepted"
    )


def _refuse_extension(code: int, data: bytes) -> Any:
    raise ValueError(f"extension type {code} is not part of the protocol")
