"""Frames: a fixed prefix of 16 bytes, a msgpack header, raw little-endian tensor bytes.

    prefix   magic "mM", protocol u8, kind u8, flags u8, 0 u8, stream u16, header bytes u32, payload bytes u32

A payload of at most 256 KiB follows its header at once. A larger one is opened by a frame with flag OPEN,
which carries the header and the length of the whole payload but none of it, and follows in frames with flag
FRAGMENT and the same stream number; frames of other streams pass between them.

Two processes speak the lower of their protocols, which may differ by one: a fleet is upgraded a process at a
time. Each says its own in the greeting. Frames of the greeting, and those that ask whether a peer is there,
are the same in every protocol and say GREETING_PROTOCOL for ever.

Every length is checked against its bound before anything is allocated. Nothing but msgpack is decoded.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import msgpack

from cluster.dispatch.kinds import FIRST_SPOKEN, Kind
from cluster.errors import ProtocolError

PROTOCOL = 1
GREETING_PROTOCOL = 1
MAGIC = b"mM"
PREFIX = struct.Struct("<2sBBBBHII")
PREFIX_BYTES = PREFIX.size

WHOLE, OPEN, FRAGMENT = 0, 1, 2

FRAGMENT_BYTES = 256 << 10
MAX_HEADER_BYTES = 1 << 20
MAX_PAYLOAD_BYTES = 256 << 20
MAX_STREAMS = 32
"""Fragmented messages that may be open at once on a connection; senders hold further ones back."""

Header = list[Any] | dict[str, Any]


class Frame:
    """One received message. payload: writable, belongs to the receiver. overhead: what the message took on
    the wire beside it, in bytes. context: what the decoder's sink said about it."""

    __slots__ = ("context", "header", "kind", "overhead", "payload")

    def __init__(self, kind: Kind, header: Any, payload: memoryview, overhead: int) -> None:
        self.kind = kind
        self.header = header
        self.payload = payload
        self.overhead = overhead
        self.context: Any = None

    def __repr__(self) -> str:
        return f"Frame({self.kind.name}, {self.header!r:.80}, {self.payload.nbytes} bytes)"


@dataclass(frozen=True)
class Limits:
    """What a connection accepts from its peer, in bytes."""

    header: int = MAX_HEADER_BYTES
    payload: int = MAX_PAYLOAD_BYTES


DEFAULT_LIMITS = Limits()


def pack_header(
    kind: Kind, header: Header, payload_bytes: int, stream: int = 0, protocol: int = PROTOCOL
) -> bytes:
    """Prefix and header of a message, OPEN if its payload must go in fragments. protocol: spoken on the
    connection; makes no difference to kinds of the link itself.

    Raises ProtocolError if the header is larger than any peer accepts.
    """
    packed: bytes = msgpack.packb(header)
    if len(packed) > MAX_HEADER_BYTES:
        raise ProtocolError(
            f"a {kind.name} header of {len(packed)} bytes exceeds {MAX_HEADER_BYTES}; send it as payload"
        )
    flags = WHOLE if payload_bytes <= FRAGMENT_BYTES else OPEN
    if kind < FIRST_SPOKEN:
        protocol = GREETING_PROTOCOL
    return PREFIX.pack(MAGIC, protocol, kind, flags, 0, stream, len(packed), payload_bytes) + packed


def fragment_prefix(kind: Kind, stream: int, count: int, protocol: int = PROTOCOL) -> bytes:
    return PREFIX.pack(MAGIC, protocol, kind, FRAGMENT, 0, stream, 0, count)


def lead_of(kind: Kind) -> int:
    """Magic, protocol and kind as the little-endian number that a prefix begins with, between two processes
    of our protocol."""
    protocol = GREETING_PROTOCOL if kind < FIRST_SPOKEN else PROTOCOL
    return int.from_bytes(MAGIC + bytes([protocol, kind]), "little")


def accepted(protocol: int, kind: int) -> bool:
    """Whether a frame that says so is taken: of our protocol, the one before it, or of the link itself."""
    if kind < FIRST_SPOKEN and protocol == GREETING_PROTOCOL:
        return True
    return max(1, PROTOCOL - 1) <= protocol <= PROTOCOL


def spoken(mine: int, theirs: int) -> int | None:
    """The protocol between two processes, the lower of theirs: N speaks with N - 1, and N - 1 with N, which
    speaks down to it. None for two that are further apart."""
    return min(mine, theirs) if abs(mine - theirs) <= 1 else None
