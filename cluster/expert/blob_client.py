"""Gets blobs from peers: piece by piece into a file, from the next peer where one fails, checked."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from cluster.dispatch import blobs
from cluster.dispatch.blobs import PIECE_BYTES
from cluster.dispatch.client import ControlClient
from cluster.dispatch.handshake import Identity
from cluster.dispatch.kinds import Kind
from cluster.errors import (
    CannotStore,
    CorruptBlob,
    IncompleteLibrary,
    MoemeshError,
    ProtocolError,
    RequestAborted,
    Unavailable,
)
from cluster.library.blobs import BlobFolder
from cluster.library.format import BlobRef
from cluster.library.incoming import Busy, Incoming

log = logging.getLogger(__name__)

PIECE_S = 5.0
"""How long a peer may take for one piece, connecting included."""

BUSY_S = 0.05
"""Between two looks whether another process has received the blob."""

SHOWN = 3
"""Peers of whose trouble an error tells."""

Wait = Callable[[float], bool]
"""Sleeps for so many seconds; True if there is no need of the rest."""


@dataclass(slots=True)
class Fetched:
    """blobs: whole and right. bytes: received. resumed: of the blobs, those that had begun earlier or at
    another peer. corrupt: whose bytes did not match their digest. failed: attempts at a peer that gave
    nothing more, for whatever reason. busy_s: seconds that pieces took, without the pauses between them.
    """

    blobs: int = 0
    bytes: int = 0
    resumed: int = 0
    corrupt: int = 0
    failed: int = 0
    busy_s: float = 0.0

    @property
    def bytes_per_s(self) -> float:
        """0 before anything was received."""
        return self.bytes / self.busy_s if self.busy_s else 0.0


def pause_s(took_s: float, share: float) -> float:
    """How long to leave a link to others after `took_s` of use, so that `share` of the time is used."""
    return took_s * (1.0 / share - 1.0)


class BlobClient:
    """For one thread. Use as a context manager: it keeps a connection to every peer that it has asked.

    identity: of who asks; its `library`, if it has one, must be the peers'. wait: how it sleeps. It is asked
    after every piece, and ends the work with RequestAborted. counts: goes on counting there.
    """

    def __init__(
        self,
        identity: Identity,
        wait: Wait,
        counts: Fetched | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.counts = Fetched() if counts is None else counts
        self._identity, self._wait, self._clock = identity, wait, clock
        self._clients: dict[str, ControlClient] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for client in self._clients.values():
            client.close()

    def fetch(
        self,
        folder: BlobFolder,
        ref: BlobRef,
        peers: Iterable[str],
        share: float = 1.0,
        distrusted: bool = False,
    ) -> None:
        """Have `folder` hold the blob. peers: addresses, asked in turn until one has given the last byte.

        share: part of the time in which bytes may flow. distrusted: a file of the right length may have wrong
        bytes; then it stays until the right ones take its place. Raises CannotStore if the folder takes none,
        IncompleteLibrary naming what was wrong with each peer if no one gives it, RequestAborted.
        """
        there = folder.is_right if distrusted else folder.has
        self._fetch(folder.file(ref), ref, peers, share, lambda: there(ref))

    def fetch_file(self, target: Path, ref: BlobRef, peers: Iterable[str], share: float = 1.0) -> None:
        """As `fetch`, to any file."""
        self._fetch(target, ref, peers, share, lambda: _is_there(target, ref))

    def _fetch(
        self, target: Path, ref: BlobRef, peers: Iterable[str], share: float, there: Callable[[], bool]
    ) -> None:
        while not there():
            try:
                with Incoming(target, ref) as incoming:
                    if not there():  # another process may have finished it by now
                        self._from_anyone(incoming, ref, list(peers), share)
            except Busy:
                self._sleep(BUSY_S)

    def library_of(self, peer: str) -> str:
        """Digest of the library that a peer serves. Raises Unavailable or ProtocolError."""
        client = self._client(peer)
        client.call(Kind.PING, [], timeout_s=PIECE_S)
        digest = None if client.server is None else client.server.library
        if not blobs.is_digest(digest):
            raise ProtocolError(f"{peer} serves no library; give the address of one that does")
        return digest

    def bytes_of(self, peer: str, digest: str) -> int:
        """Of a whole blob, as the peer says. Raises Unavailable, ProtocolError, or what the peer answered."""
        frame = self._client(peer).call(Kind.BLOB, blobs.request(digest, 0, 1), timeout_s=PIECE_S)
        return blobs.parse_answer(frame, 0, 1)[0]

    def _from_anyone(self, incoming: Incoming, ref: BlobRef, peers: Sequence[str], share: float) -> None:
        said = []
        for peer in peers:
            try:
                self._from_one(incoming, ref, peer, share)
                return
            except (CannotStore, RequestAborted):
                raise
            except MoemeshError as error:
                self.counts.failed += 1
                usual = isinstance(error, IncompleteLibrary | Unavailable)
                level = logging.DEBUG if usual else logging.WARNING
                log.log(level, "blob %s: %s gives no more of it: %s", ref.sha256[:12], peer, error)
                said.append(f"{peer}: {error}")
        raise IncompleteLibrary(
            f"nobody gives blob {ref.sha256[:12]} of {ref.bytes} bytes ({_few(said)}); "
            "start a node or a `moemesh library serve` that has it"
        )

    def _from_one(self, incoming: Incoming, ref: BlobRef, peer: str, share: float) -> None:
        """What lacks, from one peer; all of it, where what came from elsewhere before may be to blame."""
        while True:
            begun = incoming.length
            while not incoming.whole:
                self._piece(incoming, ref, peer, share)
            try:
                incoming.finish()
            except CorruptBlob as error:
                self.counts.corrupt += 1
                if not begun:
                    raise
                log.warning("blob %s: %s; it is fetched anew", ref.sha256[:12], error)
                continue
            self.counts.blobs += 1
            self.counts.resumed += begun > 0
            return

    def _piece(self, incoming: Incoming, ref: BlobRef, peer: str, share: float) -> None:
        offset, begin = incoming.length, self._clock()
        request = blobs.request(ref.sha256, offset, PIECE_BYTES)
        frame = self._client(peer).call(Kind.BLOB, request, timeout_s=PIECE_S)
        total, piece = blobs.parse_answer(frame, offset, PIECE_BYTES)
        if total != ref.bytes:
            raise ProtocolError(f"it says that the blob has {total} bytes, the manifest {ref.bytes}")
        incoming.add(piece)
        took = self._clock() - begin
        self.counts.bytes += len(piece)
        self.counts.busy_s += took
        self._sleep(pause_s(took, share))

    def _sleep(self, seconds: float) -> None:
        if self._wait(seconds):
            raise RequestAborted("the blobs are not needed any more")

    def _client(self, peer: str) -> ControlClient:
        if peer not in self._clients:
            self._clients[peer] = ControlClient(peer, identity=self._identity, limits=blobs.LIMITS)
        return self._clients[peer]


def _few(said: Sequence[str]) -> str:
    more = f"; and {len(said) - SHOWN} more" if len(said) > SHOWN else ""
    return "; ".join(said[:SHOWN]) + more if said else "there is nobody to ask"


def _is_there(target: Path, ref: BlobRef) -> bool:
    with suppress(OSError):
        return target.stat().st_size == ref.bytes
    return False
