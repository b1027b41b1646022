"""Gives peers the blobs of a library that this machine has on disk, with a port and a thread of its own.

No dispatch waits for it: it shares neither connections nor threads with them. Whoever asks is of the cluster
and has shown its key (cluster/dispatch/greeting.py), but may still only name blobs of the library.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

from cluster.dispatch.blobs import LIMITS, PIECE_BYTES, parse_request
from cluster.dispatch.connection import Connection
from cluster.dispatch.frames import Frame
from cluster.dispatch.handshake import Identity
from cluster.dispatch.kinds import Kind
from cluster.dispatch.server import FrameServer
from cluster.errors import CorruptBlob, IncompleteLibrary, ProtocolError
from cluster.library.format import BlobRef
from cluster.library.manifest import to_bytes
from cluster.library.reader import Library

MAX_QUEUED_BYTES = 8 * PIECE_BYTES
"""Of a peer that asks for more pieces before it has read those that it asked for."""


@dataclass(slots=True)
class Served:
    """pieces, bytes: sent. refused: questions for what is not here."""

    pieces: int = 0
    bytes: int = 0
    refused: int = 0


class BlobServer:
    """start() → address; shutdown(). The manifest is a blob too: its digest is the library's.

    identity: who serves; its `library` is that of the library, so that nobody who works with another one is
    let in. Blobs that arrive in the folder later are served from then on.
    """

    def __init__(self, library: Library, identity: Identity, host: str = "127.0.0.1", port: int = 0) -> None:
        self.served = Served()
        self._blobs = library.blobs
        self._refs = {ref.sha256: ref for ref in library.manifest.refs()}
        self._manifest = library.digest, to_bytes(library.manifest)
        self._server = FrameServer(
            host,
            port,
            on_frame=self._on_frame,
            identity=identity,
            limits=LIMITS,
            max_queued=MAX_QUEUED_BYTES,
            name=f"{identity.id}-blobs",
        )

    @property
    def address(self) -> str:
        """ "" before start()."""
        return self._server.address

    def start(self) -> str:
        """Listen and serve; returns the address. Raises PortInUse."""
        return self._server.start()

    def shutdown(self) -> None:
        self._server.shutdown()

    def stats(self) -> dict[str, Any]:
        return asdict(self.served) | self._server.turned.counts()

    def _on_frame(self, connection: Connection, frame: Frame) -> None:
        if frame.kind is not Kind.BLOB:
            raise ProtocolError(f"a server of blobs has no answer to {frame.kind.name}")
        digest, offset, count = parse_request(frame.header)
        try:
            total, piece = self._piece(digest, offset, count)
        except (CorruptBlob, IncompleteLibrary):
            self.served.refused += 1
            raise
        connection.send(Kind.REPLY, [total], piece)
        self.served.pieces += 1
        self.served.bytes += len(piece)

    def _piece(self, digest: str, offset: int, count: int) -> tuple[int, bytes]:
        """(bytes of the whole blob, the piece). What it sends is checked by whoever receives it."""
        if digest == self._manifest[0]:
            data = self._manifest[1]
            return len(data), data[offset : offset + count]
        ref = self._refs.get(digest)
        if ref is None:
            raise IncompleteLibrary(f"no blob of this library has the digest {digest}")
        return ref.bytes, self._read(ref, offset, count)

    def _read(self, ref: BlobRef, offset: int, count: int) -> bytes:
        if not self._blobs.has(ref):
            raise IncompleteLibrary(f"blob {ref.sha256} is not on this machine; ask another one")
        try:
            with self._blobs.file(ref).open("rb", buffering=0) as file:
                return os.pread(file.fileno(), min(count, max(0, ref.bytes - offset)), offset)
        except OSError as error:
            raise CorruptBlob(f"cannot read blob {ref.sha256}: {error.strerror}") from error
