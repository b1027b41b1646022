"""Running a node's experts on the rows it was sent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np

from cluster.compute.ffn import (
    MOST_SIZES,
    NOT_ROUNDED,
    Activations,
    FfnScratch,
    Groups,
    received,
    run_ffn,
)
from cluster.compute.scratch import Scratch
from cluster.compute.threads import Workers
from cluster.errors import ProtocolError
from kernels import layout, permute


class ExpertSource(Protocol):
    """Where the experts' weights lie.

    base: [bytes] uint8, read-only, holds every resident blob; down_offset: bytes from a blob's start to
    its down matrix.
    """

    base: np.ndarray
    down_offset: int

    def offsets(self, layer: int) -> np.ndarray | None:
        """[E] int64 byte offsets into `base`, below 0 for an expert that is not of this shard; None if they
        can change because the shard is not wholly resident."""
        ...

    def batches(self, layer: int, indices: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
        """(begin, end, [end - begin] int64 byte offsets into `base`) for consecutive parts of `indices`
        that are resident together; the offsets hold until the next part is asked for. Raises CorruptBlob,
        and LookupError for an expert that is not of this shard."""
        ...


class Pairs(NamedTuple):
    """Arrays for R rows and P pairs, as kernels/permute.py fills them."""

    order: np.ndarray
    row_of: np.ndarray
    base: np.ndarray
    start: np.ndarray
    sums: np.ndarray
    out: np.ndarray
    rounded: np.ndarray


class ExpertCompute:
    """Pure function of its payload: which node runs it, and with whom, changes no bit.

    Not thread-safe: one compute thread calls `run`.
    """

    def __init__(
        self, source: ExpertSource, experts: int, width: int, workers: Workers, round_results: bool
    ) -> None:
        """experts: of a layer; width: padded inner width of one; round_results: results are bf16 bits,
        else float32."""
        self._source, self._experts, self._workers = source, experts, workers
        self._round = round_results
        self._scratch = Scratch()
        self._inner = FfnScratch(self._scratch, width)
        self._pairs: dict[tuple[int, int], Pairs] = {}

    def run(
        self, layer: int, counts: np.ndarray, experts: np.ndarray, rows: np.ndarray, scales: np.ndarray
    ) -> np.ndarray:
        """One result row for every (row, expert) pair, in the order of `experts`.

        counts: [R] uint8, experts of each row; experts: [P] int32; rows: [R, Hp] int8 with scales [R], or
        float32. Returns [P, Hp] uint16 (bf16 bits) or float32, valid until the next call.
        Raises CorruptBlob, LookupError, and ProtocolError for pairs that do not fit their rows.
        """
        pairs = self._arrays(len(counts), len(experts), rows.shape[1])
        offsets = self._source.offsets(layer)
        if offsets is None or rows.dtype == np.float32:
            self._run_in_batches(layer, counts, experts, rows, scales, pairs)
        else:
            found = permute.arrange_int8(
                counts, experts, offsets, rows, pairs.order, pairs.row_of, pairs.base, pairs.start, pairs.sums
            )
            if found < 0:
                raise self._misfit(layer, experts, found)
            groups = Groups(pairs.base[:found], pairs.start[: found + 1], pairs.row_of, pairs.order)
            self._run(groups, Activations(rows, scales, pairs.sums), pairs)
        return pairs.rounded if self._round else pairs.out

    def _run(self, groups: Groups, acts: Activations, pairs: Pairs) -> None:
        source = self._source
        run_ffn(
            self._workers,
            self._inner,
            source.base,
            source.down_offset,
            groups,
            acts,
            pairs.out,
            pairs.rounded if self._round else NOT_ROUNDED,
        )

    def _run_in_batches(
        self,
        layer: int,
        counts: np.ndarray,
        experts: np.ndarray,
        rows: np.ndarray,
        scales: np.ndarray,
        pairs: Pairs,
    ) -> None:
        """The general way: experts that must be loaded, perhaps a few at a time, and float rows."""
        group_expert = self._scratch.vector("group_expert", len(experts), np.int32)
        found = permute.group_pairs(
            counts, experts, self._experts, pairs.order, pairs.row_of, group_expert, pairs.start
        )
        if found < 0:
            raise self._misfit(layer, experts, found)
        groups = Groups(group_expert[:found], pairs.start[: found + 1], pairs.row_of, pairs.order)
        acts = received(self._workers, self._scratch, rows, scales)
        for begin, end, base in self._source.batches(layer, groups.base):
            self._run(groups.part(begin, end, base), acts, pairs)

    def _misfit(self, layer: int, experts: np.ndarray, found: int) -> Exception:
        if found == permute.ABSENT:
            return LookupError(f"not all experts {sorted(set(experts.tolist()))} of layer {layer} are here")
        return ProtocolError(f"{len(experts)} (row, expert) pairs do not fit their rows, or name no expert")

    def _arrays(self, rows: int, count: int, width: int) -> Pairs:
        found = self._pairs.get((rows, count))
        if found is None:
            if len(self._pairs) == MOST_SIZES:
                self._pairs.clear()
            vector, take = self._scratch.vector, self._scratch.take
            found = self._pairs[rows, count] = Pairs(
                vector("order", count, np.int64),
                vector("row_of", count, np.int64),
                vector("base", count, np.int64),
                vector("start", count + 1, np.int64),
                take("sums", rows, width // layout.GROUP, np.int32),
                take("out", count, width, np.float32),
                take("rounded", count, width, np.uint16),
            )
        return found
