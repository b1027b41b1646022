"""The seam between the engine and the experts, wherever they are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class WireShape:
    """What rows look like between router and nodes; a property of the library.

    layers, experts, top_k: of the model (all layers, dense ones included; experts per sparse layer).
    hidden: width of a row on the wire, padded to 64.
    float_rows: rows go out as float32 (reference path) instead of int8 and one float32 scale.
    float_results: rows come back as float32 instead of bf16 bits.
    """

    layers: int
    experts: int
    top_k: int
    hidden: int
    float_rows: bool = False
    float_results: bool = False

    # Cached: read on every message.

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of one row on its way to a node, with its scale."""
        return self.hidden * 4 if self.float_rows else self.hidden + 4

    @cached_property
    def result_bytes(self) -> int:
        """Bytes of one expert's output row on its way back."""
        return self.hidden * (4 if self.float_results else 2)

    @cached_property
    def result_dtype(self) -> np.dtype[Any]:
        return np.dtype(np.float32 if self.float_results else np.uint16)

    @cached_property
    def expert_dtype(self) -> np.dtype[Any]:
        """Of the expert numbers in a DISPATCH header."""
        return np.dtype(np.uint8 if self.experts <= 256 else np.uint16)

    @cached_property
    def expert_bytes(self) -> int:
        return self.expert_dtype.itemsize


class ExpertCall(NamedTuple):
    """The routed rows of one layer and micro-batch.

    ids: [T, k] int32, experts of each row in gate rank order.
    rows: [T, Hp] int8, or float32 on the reference path.
    scales: [T] float32 for int8 rows, [0] for float rows.
    Arrays are C-contiguous and may be reused by the caller once `send` has returned.
    """

    step: int
    layer: int
    micro_batch: int
    ids: Array
    rows: Array
    scales: Array


@dataclass(frozen=True, slots=True)
class ExpertRows:
    """rows[index[t, r]] is the output of the rank-r expert of row t.

    rows: [P, Hp] uint16 (bf16 bits) or float32; index: [T, k] int32.
    Both stay valid until the second next `send` of the same micro-batch.
    """

    rows: Array
    index: Array


class ExpertTransport(Protocol):
    """`send` and `wait` pair up by (step, layer, micro_batch); several may be in flight."""

    def send(self, call: ExpertCall) -> None:
        """Hand the rows to the experts' owners; never waits for a reply."""

    def wait(self, step: int, layer: int, micro_batch: int) -> ExpertRows:
        """All rows of one call. Raises NodeLost, Unavailable, Overloaded, ProtocolError or the expert's
        error; the call is over then and its replies are thrown away."""

    def close(self) -> None: ...
