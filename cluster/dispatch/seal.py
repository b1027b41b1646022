"""Sealed links: behind the greeting every byte travels in records that nobody else can read or change.

    record   bytes that follow u32, ChaCha20-Poly1305 (RFC 8439) of at most 64 KiB of the stream with its tag

Each direction has a key of its own and numbers its records, in the nonce, from 0: where one was altered,
repeated, left out, or sent back to its sender, it or the next does not open, and the connection ends with
Tampered. Nothing of a record is looked at before it has opened: no frame decoder sees a byte that the peer
did not send.

Keys: HKDF-SHA256 (RFC 5869) over an X25519 (RFC 7748) secret of this one connection and the cluster's key,
salted with the whole greeting. Who learns the cluster's key later cannot read what was recorded before.

Imported by links that are sealed alone: the cipher's library takes 7 MB.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from cluster.dispatch.decoder import Decoder, FrameDecoder
from cluster.dispatch.frames import Frame
from cluster.errors import ProtocolError, Tampered

RECORD_BYTES = 64 << 10
"""What one record carries at most: its tag is checked while it lies in the second-level cache."""

KEY_BYTES = 32
TAG_BYTES = 16
INFO = b"moemesh sealed link 1"
_LENGTH = struct.Struct("<I")
_NONCE = struct.Struct("<4xQ")
OVERHEAD = _LENGTH.size + TAG_BYTES
STAGING_BYTES = 2 * (RECORD_BYTES + OVERHEAD)


@dataclass(frozen=True)
class Session:
    """The keys of one connection, as one side has them."""

    send: bytes = field(repr=False)
    receive: bytes = field(repr=False)

    def sealer(self) -> Sealer:
        return Sealer(self.send)

    def decoder(self, frames: FrameDecoder) -> SealedDecoder:
        """frames: gets what the records carried."""
        return SealedDecoder(frames, self.receive)


class Share:
    """One side's part of a connection's secret; `public` is said to the other side."""

    def __init__(self) -> None:
        self._private = X25519PrivateKey.generate()
        self.public = self._private.public_key().public_bytes_raw()

    def session(self, theirs: bytes, key: bytes, greeting: bytes, *, server: bool) -> Session:
        """theirs: the other side's public part; key: the cluster's; greeting: what both sides have said.

        Raises ProtocolError for a part that no honest peer sends.
        """
        try:
            secret = self._private.exchange(X25519PublicKey.from_public_bytes(theirs))
        except ValueError as error:
            raise ProtocolError(f"the peer's share of the session's key is none: {error}") from None
        kdf = HKDF(SHA256(), length=2 * KEY_BYTES, salt=hashlib.sha256(greeting).digest(), info=INFO)
        keys = kdf.derive(secret + key)
        clients, servers = keys[:KEY_BYTES], keys[KEY_BYTES:]
        return Session(servers, clients) if server else Session(clients, servers)


class Sealer:
    """Bytes of a stream in, records out, which must leave in the order of their making. Not thread-safe."""

    def __init__(self, key: bytes) -> None:
        self._cipher = ChaCha20Poly1305(key)
        self._records = 0

    def seal(self, buffers: Sequence[bytes | bytearray | memoryview]) -> bytearray:
        """At least one byte."""
        data = memoryview(b"".join(buffers))
        records = -(-len(data) // RECORD_BYTES)
        sealed = bytearray(len(data) + records * OVERHEAD)
        room = memoryview(sealed)
        place = 0
        for at in range(0, len(data), RECORD_BYTES):
            piece = data[at : at + RECORD_BYTES]
            begin, end = place + _LENGTH.size, place + OVERHEAD + len(piece)
            _LENGTH.pack_into(sealed, place, end - begin)
            self._cipher.encrypt_into(_NONCE.pack(self._records), piece, None, room[begin:end])
            self._records += 1
            place = end
        return sealed


class SealedDecoder(Decoder):
    """Records in, frames out, in any split."""

    at_rest = False
    """Whoever reads and writes the socket directly must not: it speaks records."""

    def __init__(self, frames: FrameDecoder, key: bytes) -> None:
        self._frames = frames
        self._cipher = ChaCha20Poly1305(key)
        self._records = 0
        self._staging = memoryview(bytearray(STAGING_BYTES))
        self._plain = memoryview(bytearray(RECORD_BYTES))
        self._end = 0

    def buffer(self) -> memoryview:
        """Where the next bytes must be written; never empty."""
        return self._staging[self._end :]

    def advance(self, count: int) -> list[Frame]:
        """`count` bytes were written to the last `buffer()`. Raises Tampered, and as a FrameDecoder does."""
        frames: list[Frame] = []
        staging = self._staging
        start, end = 0, self._end + count
        while end - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(staging, start)
            if not TAG_BYTES < length <= RECORD_BYTES + TAG_BYTES:
                raise self._tampered()
            begin = start + _LENGTH.size
            if end - begin < length:
                break
            start = begin + length
            frames += self._frames.feed(self._open(staging[begin:start]))
        staging[: end - start] = staging[start:end]
        self._end = end - start
        return frames

    def _open(self, record: memoryview) -> memoryview:
        plain = self._plain[: len(record) - TAG_BYTES]
        try:
            self._cipher.decrypt_into(_NONCE.pack(self._records), record, None, plain)
        except InvalidTag:
            raise self._tampered() from None
        self._records += 1
        return plain

    def _tampered(self) -> Tampered:
        return Tampered(
            f"record {self._records} of a sealed link was changed, repeated or lost on its way; "
            "look at what lies between the two machines"
        )
