"""Running a node's experts on the rows it was sent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np

from cluster.compute.ffn import Groups, received, run_ffn
from cluster.compute.scratch import Scratch
from cluster.compute.threads import Workers
from cluster.errors import ProtocolError
from kernels import permute, quantise


class ExpertSource(Protocol):
    """Where the experts' weights lie.

    base: [bytes] uint8, read-only, holds every resident blob; down_offset: bytes from a blob's start to
    its down matrix.
    """

    base: np.ndarray
    down_offset: int

    def batches(self, layer: int, indices: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
        """(begin, end, [end - begin] int64 byte offsets into `base`) for consecutive parts of `indices`
        that are resident together; the offsets hold until the next part is asked for. Raises CorruptBlob."""
        ...


class ExpertCompute:
    """Pure function of its payload: which node runs it, and with whom, changes no bit.

    Not thread-safe: one compute thread calls `run`.
    """

    def __init__(
        self, source: ExpertSource, experts: int, width: int, workers: Workers, round_results: bool
    ) -> None:
        """experts: of a layer; width: padded inner width of one; round_results: results are bf16 bits,
        else float32."""
        self._source, self._experts, self._width = source, experts, width
        self._workers, self._round = workers, round_results
        self._scratch = Scratch()

    def run(
        self, layer: int, counts: np.ndarray, experts: np.ndarray, rows: np.ndarray, scales: np.ndarray
    ) -> np.ndarray:
        """One result row for every (row, expert) pair, in the order of `experts`.

        counts: [R] uint8, experts of each row; experts: [P] int32; rows: [R, Hp] int8 with scales [R], or
        float32. Returns [P, Hp] uint16 (bf16 bits) or float32, valid until the next call.
        Raises CorruptBlob, and ProtocolError for pairs that do not fit their rows.
        """
        groups = self._group(counts, experts)
        acts = received(self._workers, self._scratch, rows, scales)
        out = self._scratch.take("out", len(experts), rows.shape[1], np.float32)
        source = self._source
        for begin, end, base in source.batches(layer, groups.base):
            part = groups.part(begin, end, base)
            run_ffn(
                self._workers, self._scratch, source.base, source.down_offset, self._width, part, acts, out
            )
        if not self._round:
            return out
        rounded = self._scratch.take("rounded", len(out), out.shape[1], np.uint16)
        self._workers.run(quantise.round_bf16, len(out), out, rounded)
        return rounded

    def _group(self, counts: np.ndarray, experts: np.ndarray) -> Groups:
        """Pairs sorted by expert; `base` still holds expert indices, not offsets."""
        pairs, take = len(experts), self._scratch.vector
        order, row_of = take("order", pairs, np.int64), take("row_of", pairs, np.int64)
        group_expert = take("group_expert", pairs, np.int32)
        start = take("group_start", pairs + 1, np.int64)
        found = permute.group_pairs(counts, experts, self._experts, order, row_of, group_expert, start)
        if found < 0:
            raise ProtocolError(f"{pairs} (row, expert) pairs do not fit their rows, or name no expert")
        return Groups(group_expert[:found], start[: found + 1], row_of, order)
