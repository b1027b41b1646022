"""The experts in the router's own process: no sockets, no Ray, the same arithmetic."""

from __future__ import annotations

import numpy as np

from cluster.compute.experts import ExpertCompute
from cluster.dispatch.transport import ExpertCall, ExpertRows


class LocalExperts:
    """An `ExpertTransport` over one in-process `ExpertCompute` that holds every expert."""

    def __init__(self, compute: ExpertCompute) -> None:
        self._compute = compute
        self._calls: dict[tuple[int, int, int], ExpertCall] = {}
        self._shape = (0, 0)

    def send(self, call: ExpertCall) -> None:
        self._calls[call.step, call.layer, call.micro_batch] = call

    def wait(self, step: int, layer: int, micro_batch: int) -> ExpertRows:
        """The rows are valid until the next `wait`."""
        call = self._calls.pop((step, layer, micro_batch))
        if call.ids.shape != self._shape:
            self._resize(*call.ids.shape)
        out = self._compute.run(call.layer, self._counts, call.ids.reshape(-1), call.rows, call.scales)
        return ExpertRows(out, self._index)

    def _resize(self, rows: int, top_k: int) -> None:
        """What only depends on how many rows there are; a step of decode has as many as the one before."""
        self._shape = rows, top_k
        self._counts = np.full(rows, top_k, np.uint8)
        self._index = np.arange(rows * top_k, dtype=np.int32).reshape(rows, top_k)

    def close(self) -> None:
        self._calls.clear()
