"""KV pages of the sequences in an engine: allotted, shared between equal beginnings, given back."""

from __future__ import annotations

import numpy as np

from cluster.compute.trunk import KvView
from cluster.router.kv import KvCache
from cluster.router.prefix import extend_keys, root_key
from cluster.router.scheduler import Chunk
from cluster.router.sequence import Piece, Sequence


class Paging:
    """view: what the trunk reads. slots: sequences at a time; context: the longest one in tokens.

    library: digest of the manifest, a part of every key. share: whether sequences may begin with pages that
    others have computed; across_tenants: also those of other tenants. prompt_tokens, shared_tokens: of the
    sequences admitted so far that may share, and how many of those tokens were there already.
    """

    def __init__(
        self,
        kv: KvCache,
        kv_type: str,
        slots: int,
        context: int,
        library: str = "",
        share: bool = True,
        across_tenants: bool = False,
    ) -> None:
        self._kv, self._kv_type, self._library, self._share = kv, kv_type, library, share
        self._across_tenants = across_tenants
        self._table = np.zeros((slots, kv.pages_for(context)), np.int32)
        self.view = KvView(kv.keys, kv.values, kv.page_tokens, self._table, kv.key_scales, kv.value_scales)
        self.prompt_tokens = self.shared_tokens = 0

    @property
    def table(self) -> np.ndarray:
        """[slots, pages] int32."""
        return self._table

    @property
    def free(self) -> int:
        return self._kv.pool.free

    def look(self, sequence: Sequence) -> None:
        """Find out what a waiting sequence could begin with. Its last token is always computed: its logits
        are wanted. A request that wants something of every prompt token shares nothing."""
        if not self._share or sequence.request.kind != "generate":
            return
        keys = self._keys(sequence)[: (sequence.length - 1) // self._kv.page_tokens]
        sequence.found = self._kv.pool.find(keys)
        sequence.idle = self._kv.pool.idle(sequence.found)

    def weigh(self, running: list[Sequence]) -> None:
        """Count what each would give back, if that can matter: a running sequence needs one page at most."""
        if self.free < len(running):
            for sequence in running:
                sequence.sole = self._kv.pool.sole(sequence.pages)

    def admit(self, sequence: Sequence) -> None:
        """Into its slot, with the pages that were found."""
        found, sequence.found, sequence.idle = sequence.found, [], 0
        self._kv.pool.hold(found)
        sequence.pages = found
        sequence.computed = sequence.published = len(found) * self._kv.page_tokens
        self._table[sequence.slot, : len(found)] = found
        if self._share and sequence.request.kind == "generate":
            self.prompt_tokens += sequence.length
            self.shared_tokens += sequence.computed

    def allocate(self, sequence: Sequence, chunk: Chunk) -> Piece:
        held = sequence.held
        sequence.pages += self._kv.take(chunk.pages)
        self._table[sequence.slot, held : sequence.held] = sequence.pages[held:]
        return Piece(sequence, sequence.computed, chunk.count)

    def publish(self, sequence: Sequence) -> None:
        """Let others find the pages that the last step has filled."""
        size = self._kv.page_tokens
        if not self._share or sequence.computed < sequence.published + size:
            return
        keys = self._keys(sequence)
        for page in range(sequence.published // size, sequence.computed // size):
            self._kv.pool.publish(sequence.pages[page], keys[page])
        sequence.published = sequence.computed // size * size

    def release(self, sequence: Sequence) -> None:
        self._kv.release(sequence.pages)
        sequence.pages = []

    def _keys(self, sequence: Sequence) -> list[bytes]:
        request = sequence.request
        tenant = "" if self._across_tenants else request.tenant
        root = root_key(self._library, request.tier, self._kv_type, tenant)
        extend_keys(sequence.keys, root, sequence.tokens, self._kv.page_tokens)
        return sequence.keys
