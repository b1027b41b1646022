"""What a node has of its library on disk: it gives it to peers, and gets from them what it lacks."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cluster.config import NodeConfig
from cluster.dispatch.handshake import Identity
from cluster.errors import (
    ConfigError,
    CorruptBlob,
    IncompleteLibrary,
    LibraryError,
    RequestAborted,
    Unavailable,
)
from cluster.expert.blob_client import BlobClient, Fetched, Wait
from cluster.expert.blob_server import BlobServer
from cluster.expert.fetch import fetch_manifest
from cluster.fleet.control import View
from cluster.library.bundled import open_model
from cluster.library.format import MANIFEST_NAME, BlobRef
from cluster.library.reader import Library
from cluster.types import ExpertId, NodeId

log = logging.getLogger(__name__)

PATIENCE_S = 10.0
"""How long nobody may have any of the blobs that lack: others start or restart meanwhile."""

AGAIN_S = 0.25
"""Between two rounds of asking."""


def peers_of(expert: ExpertId, view: View, me: str, hub: str = "") -> list[str]:
    """Whom to ask for an expert's blob, the likeliest first: who holds it by the table, who has every blob
    (and the hub), and all others, who may have held it once. Nodes that a next table has no more are lost or
    about to leave, and come last. Different experts begin with different ones of equal rank."""
    holders, staying = _holders(expert, view), _staying(view)
    ranked: list[tuple[int, str]] = [(1, hub)] if hub else []
    for name, node in view.nodes.items():
        address = str(node.get("blobs", ""))
        if name == me or not address or not node["alive"]:
            continue
        likely = 0 if name in holders else 1 if node.get("complete") else 2
        ranked.append((likely if name in staying else 2, address))
    groups = [[address for rank, address in ranked if rank == each] for each in range(3)]
    return [address for group in groups for address in _turned(group, expert.layer + expert.index)]


def _holders(expert: ExpertId, view: View) -> set[str]:
    if view.table is None:
        return set()
    return {view.table.nodes[place] for place in view.table.replicas[expert.layer][expert.index]}


def _staying(view: View) -> set[NodeId | str]:
    return set(view.nodes) if view.next is None else set(view.next.nodes)


def _turned(addresses: list[str], by: int) -> list[str]:
    by %= len(addresses) or 1
    return addresses[by:] + addresses[:by]


def open_library(folder: str, identity: Identity, hub: str, wait: Wait) -> Library:
    """The library in a folder, "" for the bundled one; where there is none, as much of the hub's as a node
    needs to begin: its manifest. Raises LibraryError, and what `fetch_manifest` does if the hub has not
    answered for PATIENCE_S."""
    if not hub or not folder or (Path(folder) / MANIFEST_NAME).exists():
        return open_model(folder)
    deadline = time.monotonic() + PATIENCE_S
    with BlobClient(identity, wait) as client:
        while True:
            try:
                return fetch_manifest(client, hub, Path(folder))
            except Unavailable:
                if time.monotonic() > deadline or wait(AGAIN_S):
                    raise


class Supply:
    """`get` is for one thread; the rest for any. Lifecycle: start() → address, shutdown().

    Raises ConfigError for a share that is none.
    """

    def __init__(
        self,
        library: Library,
        variant: str,
        identity: Identity,
        config: NodeConfig,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not 0 < config.fetch_share <= 1:
            raise ConfigError(f"a fetch_share of {config.fetch_share}; it is above 0 and at most 1")
        self._library, self._variant = library, variant
        self._identity, self._clock = identity, clock
        self._server = BlobServer(library, identity, config.host, config.blob_port)
        self._fetched = Fetched()
        self._missing = set(library.blobs.missing(library.variant(variant).refs()))
        self._wrong: set[BlobRef] = set()
        """Of the missing: those of which there is a file with other bytes."""
        self._replaced = 0

    def start(self) -> str:
        """Raises PortInUse."""
        return self._server.start()

    def shutdown(self) -> None:
        self._server.shutdown()

    def load_speed(self, disk: float) -> float:
        """Bytes per second at which experts come, as far as is known: of `disk`, where a node has no file of
        some expert also of its peers."""
        told = [disk] if not self._missing else [disk, self._fetched.bytes_per_s]
        return min((speed for speed in told if speed > 0), default=0.0)

    def stats(self) -> dict[str, Any]:
        """address, complete: for the controller; the rest for people. replaced: blobs that were on disk with
        wrong bytes."""
        return {
            "address": self._server.address,
            "complete": not self._missing,
            "missing": len(self._missing),
            "replaced": self._replaced,
            "fetched": asdict(self._fetched),
            "served": self._server.stats(),
        }

    def distrust(self, experts: Iterable[ExpertId]) -> int:
        """Read the blobs of `experts` and count as missing what does not match its digest, so that `get` gets
        it anew; returns how many do not."""
        refs = {self._library.expert_ref(self._variant, expert) for expert in experts}
        wrong = {ref for ref in refs if not self._library.blobs.is_right(ref)}
        for ref in wrong:
            log.warning("blob %s has wrong bytes on disk, or none; it is fetched anew", ref.sha256)
        self._wrong |= wrong
        self._missing |= wrong
        return len(wrong)

    def get(
        self,
        experts: Iterable[ExpertId],
        peers: Callable[[ExpertId], Sequence[str]],
        share: float,
        wait: Wait,
    ) -> None:
        """Have the blobs of `experts` on disk. peers, share, wait: as BlobClient has them; peers are asked
        for anew in every round.

        Raises IncompleteLibrary, or CorruptBlob of what is there with wrong bytes, when none of what lacks
        has come for PATIENCE_S, CannotStore, RequestAborted; what has come by then stays.
        """
        lacking = {expert: ref for expert in sorted(experts) if (ref := self._lacks(expert))}
        if not lacking:
            return
        log.info("%d experts have no file here: fetching them", len(lacking))
        deadline = self._clock() + PATIENCE_S
        with BlobClient(self._identity, wait, self._fetched) as client:
            while lacking:
                refused = self._round(client, lacking, peers, share)
                if len(refused) < len(lacking):
                    deadline = self._clock() + PATIENCE_S
                elif self._clock() > deadline:
                    raise next(iter(refused.values()))
                lacking = {expert: lacking[expert] for expert in refused}
                if lacking and wait(AGAIN_S):
                    raise RequestAborted("the experts are not needed any more")

    def _round(
        self,
        client: BlobClient,
        lacking: dict[ExpertId, BlobRef],
        peers: Callable[[ExpertId], Sequence[str]],
        share: float,
    ) -> dict[ExpertId, LibraryError]:
        """Ask for each once; returns those that nobody gave, and why."""
        refused: dict[ExpertId, LibraryError] = {}
        for expert, ref in lacking.items():
            try:
                client.fetch(self._library.blobs, ref, peers(expert), share, ref in self._wrong)
            except IncompleteLibrary as error:
                wrong = ref in self._wrong
                what = "has wrong bytes on disk" if wrong else "is not on disk"
                kind = CorruptBlob if wrong else IncompleteLibrary
                refused[expert] = kind(f"expert {expert.index} of layer {expert.layer} {what}: {error}")
            else:
                self._arrived(ref)
        return refused

    def _arrived(self, ref: BlobRef) -> None:
        self._replaced += ref in self._wrong
        self._wrong.discard(ref)
        self._missing.discard(ref)

    def _lacks(self, expert: ExpertId) -> BlobRef | None:
        ref = self._library.expert_ref(self._variant, expert)
        return ref if ref in self._missing else None
