"""Where an expert node's weights live: mapped if the shard fits its budget, else in an arena of that size.

Kernels see the same either way: one read-only uint8 array `base` and a byte offset into it for each expert.
Mapped pages would escape a budget (the operating system decides what stays), so they are used only where all
of them are allowed (DESIGN section 5).
"""

from __future__ import annotations

import logging
import mmap
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
import numpy.typing as npt

from cluster.errors import OutOfMemoryBudget
from cluster.expert.mapping import PAGE, map_files
from cluster.library.format import BlobRef
from cluster.library.reader import Library
from cluster.types import ExpertId
from kernels import layout

I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]

ABSENT = -1

log = logging.getLogger(__name__)


def least_recent(last_used: I64, keep: Collection[ExpertId], count: int) -> list[ExpertId]:
    """The experts that leave: the `count` least recently used that are resident and not in `keep`, in order.

    last_used: [layers, experts] int64, larger is later, ABSENT for one that is not resident. Ties go to the
    lower layer, then index.
    """
    if count <= 0:
        return []
    oldest_first = np.argsort(last_used, axis=None, kind="stable")
    found = (ExpertId(*divmod(int(flat), last_used.shape[1])) for flat in oldest_first)
    leaving = (
        expert for expert in found if last_used[expert.layer, expert.index] != ABSENT and expert not in keep
    )
    return list(islice(leaving, count))


class ExpertStore:
    """The shard of one node. One thread asks; any number may read `base` at what they were given.

    library, variant: "" is the library's default variant. experts: the shard. budget_bytes: hard limit of
    resident weights, 0 for none. Every blob is checked before its first use: all of them here where the shard
    is mapped, each at every read from disk where it is not.
    checked: experts that an earlier store of this process has mapped; they are not checked again.
    Raises OutOfMemoryBudget for a budget below one expert, CorruptBlob or LibraryError for a broken library.
    """

    def __init__(
        self,
        library: Library,
        variant: str,
        experts: Iterable[ExpertId],
        budget_bytes: int = 0,
        checked: Collection[ExpertId] = (),
    ) -> None:
        self._library = library
        self._variant = variant
        self._refs: dict[ExpertId, BlobRef] = {
            expert: library.expert_ref(variant, expert) for expert in sorted(set(experts))
        }
        self.down_offset = library.down_offset(variant)
        """Bytes from an expert's offset to its down matrix."""
        self.width = layout.pad(library.spec.expert_width, layout.GROUP)
        """Padded inner width of the experts."""
        self.hits = 0
        self.misses = 0
        self.evictions = 0
        self.base: U8 = np.empty(0, np.uint8)
        """[bytes] uint8, read-only: the memory that offsets point into."""
        # Both [layers, experts]: where an expert starts in `base`, and when it was last asked for.
        self._offsets = np.full((library.spec.layers, library.spec.experts), ABSENT, np.int64)
        self._last_used = self._offsets.copy()
        self._clock = 0
        self._arena = memoryview(b"")
        self._free: list[int] = []  # offsets of empty slots, the next to be filled last
        largest = max((ref.bytes for ref in self._refs.values()), default=0)
        self._slot_bytes = layout.pad(largest, layout.ALIGN)
        fits = sum(layout.pad(ref.bytes, PAGE) for ref in self._refs.values()) <= budget_bytes
        self.mapped = bool(self._refs) and (fits or not budget_bytes) and self._map(checked)
        self.capacity = len(self._refs)
        """Experts that can be resident at once: the most that one `acquire` may ask for."""
        if not self.mapped:
            self._allocate(budget_bytes)

    @property
    def resident_bytes(self) -> int:
        """Bytes of weights in memory now."""
        resident = (e for e in self._refs if self._offsets[e.layer, e.index] != ABSENT)
        return sum(self._refs[expert].bytes for expert in resident)

    @property
    def experts(self) -> Collection[ExpertId]:
        """The shard."""
        return self._refs.keys()

    def bytes_of(self, expert: ExpertId) -> int:
        """Of one expert of the shard."""
        return self._refs[expert].bytes

    def has(self, expert: ExpertId) -> bool:
        """Whether the expert belongs to this shard, resident or not."""
        return expert in self._refs

    def acquire(self, layer: int, indices: Sequence[int] | npt.NDArray[np.integer]) -> I64:
        """Byte offsets into `base` of these experts of a layer, loading what is not resident.

        Offsets hold until the next acquire. At most `capacity` different experts (see `batches`), or it
        raises ValueError; LookupError for an expert that `has` denies, before anything is loaded; CorruptBlob
        for a blob that does not match its digest, which then is not resident.
        """
        wanted = np.asarray(indices, np.int64)
        offsets: I64 = self._offsets[layer][wanted]
        absent = wanted[offsets == ABSENT]
        if absent.size:
            absent = np.unique(absent)
            self._load(layer, wanted, absent.tolist())
            offsets = self._offsets[layer][wanted]
        self._last_used[layer][wanted] = np.arange(self._clock, self._clock + wanted.size)
        self._clock += wanted.size
        self.hits += wanted.size - absent.size
        return offsets

    def offsets(self, layer: int) -> I64 | None:
        """[experts] int64 byte offsets into `base`, ABSENT for what is not of this shard; None unless mapped:
        then they are what `acquire` returns, for ever, and nobody need ask it."""
        return self._offsets[layer] if self.mapped else None

    def batches(
        self, layer: int, indices: Sequence[int] | npt.NDArray[np.integer]
    ) -> Iterator[tuple[int, int, I64]]:
        """Acquire `indices` (each different) in consecutive runs that fit: (begin, end, their offsets).

        The offsets of a run hold until the next run is asked for. Raises what `acquire` raises.
        """
        for begin in range(0, len(indices), max(self.capacity, 1)):
            end = min(begin + max(self.capacity, 1), len(indices))
            yield begin, end, self.acquire(layer, indices[begin:end])

    def close(self) -> None:
        """Give the memory back; it goes when the last view of `base` goes. Acquire nothing afterwards."""
        self._offsets[:] = ABSENT
        self._refs.clear()
        self._free.clear()
        self.capacity = 0
        self._arena = memoryview(b"")
        self.base = np.empty(0, np.uint8)

    def _map(self, checked: Collection[ExpertId]) -> bool:
        files = [(self._library.blobs.file(ref), ref.bytes) for ref in self._refs.values()]
        for ref in self._refs.values():
            self._library.blobs.check_length(ref)
        try:
            base, starts = map_files(files)
        except OSError:
            log.warning("cannot map the experts, reading them into memory instead", exc_info=True)
            return False
        for (expert, ref), start in zip(self._refs.items(), starts, strict=True):
            data = base[start : start + ref.bytes]
            if expert in checked:
                data[::PAGE].max()  # its pages are in memory, but not yet in this mapping
            else:
                self._library.blobs.check_digest(ref, data.data)
                self._library.check_expert(self._variant, data)
            self._offsets[expert.layer, expert.index] = start
        self.base = base
        return True

    def _allocate(self, budget_bytes: int) -> None:
        """An arena of equal slots, as many as the budget has room for and the shard has use for."""
        if budget_bytes:
            self.capacity = min(self.capacity, budget_bytes // max(self._slot_bytes, 1))
        if self._refs and self.capacity == 0:
            raise OutOfMemoryBudget(
                f"a memory budget of {budget_bytes} bytes is below one expert of {self._library.name}; "
                f"give the node at least {self._slot_bytes} bytes"
            )
        for ref in self._refs.values():
            self._library.blobs.check_length(ref)
        if self.capacity:
            # Anonymous pages cost nothing until a slot is filled.
            self._arena = memoryview(mmap.mmap(-1, self.capacity * self._slot_bytes))
            self.base = np.frombuffer(self._arena, np.uint8)
            self.base.flags.writeable = False
        self._free = [slot * self._slot_bytes for slot in reversed(range(self.capacity))]

    def _load(self, layer: int, wanted: I64, absent: list[int]) -> None:
        experts = [ExpertId(layer, index) for index in absent]
        for expert in experts:
            if expert not in self._refs:
                raise LookupError(f"expert {expert.index} of layer {layer} is not in this shard")
        keep = {ExpertId(layer, index) for index in wanted.tolist()}
        if len(keep) > self.capacity:
            raise ValueError(f"asked for {len(keep)} experts at once, {self.capacity} fit; ask in batches")
        for victim in least_recent(self._last_used, keep, len(experts) - len(self._free)):
            self._free.append(int(self._offsets[victim.layer, victim.index]))
            self._offsets[victim.layer, victim.index] = ABSENT
            self._last_used[victim.layer, victim.index] = ABSENT
            self.evictions += 1
        for expert in experts:
            self._read(self._refs[expert], self._free[-1])
            self._offsets[layer, expert.index] = self._free.pop()
            self._last_used[layer, expert.index] = self._clock
            self.misses += 1

    def _read(self, ref: BlobRef, slot: int) -> None:
        self._library.blobs.read_into(ref, self._arena[slot : slot + ref.bytes])
        self._library.check_expert(self._variant, self.base[slot : slot + ref.bytes])
