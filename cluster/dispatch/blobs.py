"""How a blob is asked for, a piece at a time. The only place that knows the order of these headers.

    BLOB   digest str (64 hex digits), offset, bytes wanted
    REPLY  bytes of the whole blob; payload: the piece, which ends early at the end of the blob alone

A digest is the only name that a blob has, so that nothing that somebody asks for is ever made a path.
"""

from __future__ import annotations

import re
from typing import Any, TypeGuard

from cluster.dispatch.frames import FRAGMENT_BYTES, Frame, Header, Limits
from cluster.errors import ProtocolError

PIECE_BYTES = FRAGMENT_BYTES
"""What one answer carries at most: neither side holds more of a blob."""

MAX_HEADER_BYTES = 8192
LIMITS = Limits(header=MAX_HEADER_BYTES, payload=PIECE_BYTES)
"""Of both sides' connections, which carry nothing else."""

_DIGEST = re.compile(r"[0-9a-f]{64}")


def request(digest: str, offset: int, count: int) -> Header:
    return [digest, offset, count]


def is_digest(value: Any) -> TypeGuard[str]:
    """Whether a peer's word may be taken for a digest, and so for a file's name."""
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None


def parse_request(header: Any) -> tuple[str, int, int]:
    """(digest, offset, bytes). Raises ProtocolError for anything that `request` does not make."""
    digest, offset, count = header if isinstance(header, list) and len(header) == 3 else (None, None, None)
    if not is_digest(digest):
        raise ProtocolError(f"a peer asked for the blob {digest!r:.80}, which is no digest")
    if type(offset) is not int or type(count) is not int or offset < 0 or not 0 < count <= PIECE_BYTES:
        raise ProtocolError(f"a peer asked for {count!r:.20} bytes of a blob from {offset!r:.20} on")
    return digest, offset, count


def parse_answer(frame: Frame, offset: int, count: int) -> tuple[int, memoryview]:
    """(bytes of the whole blob, the piece from `offset` on). Raises ProtocolError for a piece that is not as
    long as was asked for."""
    header = frame.header
    total = header[0] if isinstance(header, list) and len(header) == 1 else None
    if type(total) is not int or total < 0:
        raise ProtocolError(f"a peer says that a blob has {total!r:.20} bytes")
    if len(frame.payload) != max(0, min(count, total - offset)):
        raise ProtocolError(f"a peer sent {len(frame.payload)} bytes of a blob where {count} were asked for")
    return total, frame.payload
