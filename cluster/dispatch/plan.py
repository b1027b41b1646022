"""Buffers of a call, and the split of its rows over nodes. Reused from call to call: nothing here allocates
once the largest batch has been seen."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

from cluster.dispatch.choice import Replicas
from cluster.dispatch.transport import Array, ExpertCall, WireShape
from kernels import permute, replicas


class Slot:
    """What one call in flight needs. A slot is reused only when its call is over.

    After `fill`, node n has rows row_start[n]:row_start[n+1] and pairs pair_start[n]:pair_start[n+1];
    pairs are numbered node by node, then by row, then by gate rank.

    plan: (row_start, pair_start, counts, experts); waiting: [nodes] uint8; payload, results_bytes:
    uint8. All for kernels/express.py. experts: int32 [pairs], those of the call.
    """

    def __init__(self, shape: WireShape) -> None:
        self._shape = shape
        self._nodes = self._capacity = self._tokens = -1
        self.busy = False

    def fill(self, call: ExpertCall, owner: Array, nodes: int) -> None:
        """Plan the call over `nodes` and gather every node's payload. owner: [experts] int32."""
        tokens = len(call.ids)
        if tokens != self._tokens or nodes != self._nodes:
            self._resize(tokens, nodes)
        if self._shape.float_rows:
            permute.plan_dispatch(call.ids, owner, *self._planned)
            permute.gather_f32(call.rows, self._rows, self._starts[0], self.payload)
        else:
            permute.plan_int8(call.ids, owner, call.rows, call.scales, *self._planned, self.payload)

    def fill_copies(self, call: ExpertCall, layer: Replicas, copies: Array, nodes: int) -> None:
        """`fill` where experts have several copies. copies: [T, k] int32, the one that computes each pair."""
        self.fill(call._replace(ids=copies), layer.copies.device, nodes)
        replicas.name_experts(layer.expert_of, self.experts)

    def nodes(self) -> list[int]:
        """Those that have rows of the call."""
        starts = self._starts[0].tolist()
        return [node for node in range(self._nodes) if starts[node] < starts[node + 1]]

    def request(self, node: int) -> tuple[int, memoryview, bytes, memoryview]:
        """(rows, counts, experts, payload) of node `node`'s DISPATCH."""
        first, last = self._starts[0][node : node + 2].tolist()
        first_pair, last_pair = self._starts[1][node : node + 2].tolist()
        row = self._shape.row_bytes
        return (
            last - first,
            self._counts_bytes[first:last],
            self._experts[first_pair:last_pair].astype(self._shape.expert_dtype).tobytes(),
            self._payload_bytes[first * row : last * row],
        )

    def pairs(self, node: int) -> tuple[int, int]:
        """The pairs of node `node`: from the first to before the last."""
        first, last = self._starts[1][node : node + 2].tolist()
        return first, last

    def region(self, node: int) -> memoryview:
        """Where node `node`'s result rows belong."""
        first, last = self.pairs(node)
        width = self._shape.result_bytes
        return self._results_view[first * width : last * width]

    def _resize(self, tokens: int, nodes: int) -> None:
        """Views for this many tokens; a step of decode has as many as the one before."""
        if tokens > self._capacity or nodes != self._nodes:
            self._reserve(max(tokens, self._capacity), nodes)
        pairs = tokens * self._shape.top_k
        self._tokens = tokens
        self.index = self._index[:tokens]
        self.results = self._results[:pairs]
        self.experts = self._experts[:pairs]
        self._planned = (*self._starts, self._rows, self._counts, self._experts, self.index)

    def _reserve(self, tokens: int, nodes: int) -> None:
        shape = self._shape
        pairs = tokens * shape.top_k
        rows = tokens * min(nodes, shape.top_k)  # a row goes to no more nodes than it has experts
        self._nodes, self._capacity = nodes, tokens
        self._starts = np.zeros(nodes + 1, np.int64), np.zeros(nodes + 1, np.int64)
        self.waiting = np.zeros(nodes, np.uint8)
        self._rows = np.empty(rows, np.int32)
        self._counts = np.empty(rows, np.uint8)
        self._experts = np.empty(pairs, np.int32)
        self._index = np.empty((tokens, shape.top_k), np.int32)
        self.payload = np.empty(rows * shape.row_bytes, np.uint8)
        self._results = np.empty((pairs, shape.hidden), shape.result_dtype)
        self._counts_bytes = _bytes(self._counts)
        self._payload_bytes = _bytes(self.payload)
        self.results_bytes = self._results.view(np.uint8).reshape(-1)
        self._results_view = _bytes(self._results)
        self.plan = (*self._starts, self._counts, self._experts)


class Slots:
    """Two slots for each micro-batch, used in turn, so that a call's results outlive the next call's start;
    more only while more calls of a micro-batch are in flight."""

    def __init__(self, shape: WireShape) -> None:
        self._shape = shape
        self._slots: dict[int, deque[Slot]] = {}

    def take(self, micro_batch: int) -> Slot:
        slots = self._slots.get(micro_batch)
        if slots is None:
            slots = self._slots[micro_batch] = deque()
        if len(slots) < 2 or slots[0].busy:
            slots.append(Slot(self._shape))
        else:
            slots.rotate(-1)
        return slots[-1]

    def discard(self, slot: Slot) -> None:
        for slots in self._slots.values():
            if slot in slots:
                slots.remove(slot)


def _bytes(array: np.ndarray[Any, Any]) -> memoryview:
    return array.data.cast("B")
