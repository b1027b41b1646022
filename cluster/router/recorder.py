"""What the gates chose, kept until somebody takes it: the source of recorded traces.

A `GateRecorder` is the engine's probe in a router as in `moemesh trace record`. It only copies; whoever
writes the file (cluster/experiments/traces.py) drains it. Without one the layer loop pays for a comparison
with None.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cluster.errors import ProtocolError
from cluster.router.sequence import Batch
from cluster.types import RequestId

MOST_BYTES = 64 << 20
"""What waits to be drained; beyond it batches are left out and counted."""

MOST_OPEN = 4
"""Batches begun and not at their last layer; there are as many as micro-batches, unless steps failed."""


@dataclass(frozen=True, eq=False)
class GateRecord:
    """One micro-batch of T tokens through all sparse layers; what is dispatched together.

    step: counts the recorder's batches. time: seconds since the recorder began, at the batch's first gate.
    requests: (id, rows) in the order of rows. positions: [T] int64. layers: of the model, ascending.
    ids: [layers, T, top_k] uint16, best first; weights: the same, float32.
    """

    step: int
    time: float
    requests: tuple[tuple[RequestId, int], ...]
    positions: np.ndarray
    layers: tuple[int, ...]
    ids: np.ndarray
    weights: np.ndarray

    @property
    def bytes(self) -> int:
        return int(self.positions.nbytes + self.ids.nbytes + self.weights.nbytes)

    def to_wire(self) -> dict[str, Any]:
        """As msgpack-able values, arrays little-endian."""
        return {
            "step": self.step,
            "time": self.time,
            "requests": [[str(name), rows] for name, rows in self.requests],
            "layers": list(self.layers),
            "shape": list(self.ids.shape),
            "positions": self.positions.astype("<i8").tobytes(),
            "ids": self.ids.astype("<u2").tobytes(),
            "weights": self.weights.astype("<f4").tobytes(),
        }

    @staticmethod
    def from_wire(values: Mapping[str, Any]) -> GateRecord:
        """Inverse of `to_wire`. Raises ProtocolError on anything that is not a valid record."""
        try:
            layers, tokens, top_k = (int(count) for count in values["shape"])
            record = GateRecord(
                int(values["step"]),
                float(values["time"]),
                tuple((RequestId(str(name)), int(rows)) for name, rows in values["requests"]),
                np.frombuffer(values["positions"], "<i8").reshape(tokens),
                tuple(int(layer) for layer in values["layers"]),
                np.frombuffer(values["ids"], "<u2").reshape(layers, tokens, top_k),
                np.frombuffer(values["weights"], "<f4").reshape(layers, tokens, top_k),
            )
            if len(record.layers) != layers or sum(rows for _, rows in record.requests) != tokens:
                raise ValueError("layers or rows do not add up")
        except (KeyError, AttributeError, TypeError, ValueError, OverflowError) as error:
            raise ProtocolError(
                f"a router sent a broken trace ({error}); are all versions the same?"
            ) from error
        return record


class GateRecorder:
    """A Probe of the engine; one thread steps the engine, and drains.

    layers: sparse layers of the model. clock: seconds, monotonic. dropped: tokens left out for want of room.
    """

    def __init__(self, layers: int, clock: Callable[[], float], most_bytes: int = MOST_BYTES) -> None:
        self.dropped = 0
        self._layers, self._clock, self._most = layers, clock, most_bytes
        self._began = clock()
        self._open: list[_Open] = []
        self._records: list[GateRecord] = []
        self._bytes = self._steps = 0

    def gate(self, layer: int, batch: Batch, ids: np.ndarray, weights: np.ndarray) -> None:
        opened = next((each for each in self._open if each.batch is batch), None) or self._begin(batch)
        opened.layers.append(layer)
        opened.ids.append(ids.astype(np.uint16))
        opened.weights.append(weights.astype(np.float32))
        if len(opened.layers) == self._layers:
            self._open.remove(opened)
            self._keep(opened)

    def logits(self, request_id: RequestId, position: int, logits: np.ndarray) -> None:
        """Not part of a trace."""

    def drain(self) -> list[GateRecord]:
        """All complete batches since the last call, oldest first."""
        records, self._records, self._bytes = self._records, [], 0
        return records

    def _begin(self, batch: Batch) -> _Open:
        """Batches whose step failed never come to their last layer: the oldest goes when there are too
        many.
        """
        del self._open[: len(self._open) - MOST_OPEN + 1]
        opened = _Open(batch, self._steps, self._clock() - self._began, [], [], [])
        self._steps += 1
        self._open.append(opened)
        return opened

    def _keep(self, opened: _Open) -> None:
        if self._bytes >= self._most:
            self.dropped += len(opened.batch.tokens)
            return
        record = GateRecord(
            opened.step,
            opened.time,
            tuple((piece.sequence.id, piece.count) for piece in opened.batch.pieces),
            opened.batch.positions.copy(),
            tuple(opened.layers),
            np.stack(opened.ids),
            np.stack(opened.weights),
        )
        self._bytes += record.bytes
        self._records.append(record)


@dataclass(eq=False)
class _Open:
    batch: Batch
    step: int
    time: float
    layers: list[int]
    ids: list[np.ndarray]
    weights: list[np.ndarray]
