"""What a routing trace is in memory. Needs numpy alone; files are in cluster/experiments/traces.py."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from cluster.balance.fleet import Floats
from cluster.errors import InvalidRequest

MOST_EXPERTS = 1 << 16


@dataclass(frozen=True)
class Header:
    """experts: in every sparse layer. layers: the sparse layers' numbers in the model. source: where the
    trace comes from, for people. Raises InvalidRequest on nonsense."""

    experts: int
    top_k: int
    layers: tuple[int, ...]
    source: str = ""

    def __post_init__(self) -> None:
        if not 1 <= self.top_k <= self.experts <= MOST_EXPERTS:
            raise InvalidRequest(
                f"a trace with {self.top_k} of {self.experts} experts; "
                f"it needs 1 ≤ top-k ≤ experts ≤ {MOST_EXPERTS}"
            )
        if not self.layers or any(a >= b for a, b in pairwise(self.layers)):
            raise InvalidRequest(f"a trace of layers {list(self.layers)[:8]}; they must be there and ascend")


@dataclass(frozen=True, eq=False)
class Trace:
    """N tokens through L sparse layers, in the order in which they were routed.

    step: [N] int64, tokens of one step are dispatched together; ascending. time: [N] float64 seconds.
    request, position: [N] int64. ids: [N, L, top_k] uint16, best first; weights: the same, float32.

    Raises InvalidRequest where shapes disagree or an expert does not exist.
    """

    header: Header
    step: npt.NDArray[np.int64]
    time: Floats
    request: npt.NDArray[np.int64]
    position: npt.NDArray[np.int64]
    ids: npt.NDArray[np.uint16]
    weights: npt.NDArray[np.float32]

    def __post_init__(self) -> None:
        shape = (len(self.step), len(self.header.layers), self.header.top_k)
        columns = (self.step, self.time, self.request, self.position)
        if self.ids.shape != shape or self.weights.shape != shape:
            raise InvalidRequest(f"a trace with ids of shape {self.ids.shape}; it must be {list(shape)}")
        if any(column.shape != shape[:1] for column in columns):
            raise InvalidRequest("a trace's columns differ in length")
        if self.ids.size and int(self.ids.max()) >= self.header.experts:
            raise InvalidRequest(
                f"a trace names expert {int(self.ids.max())} and its layers have {self.header.experts}"
            )
        if np.any(np.diff(self.step) < 0):
            raise InvalidRequest("a trace's steps must ascend")

    def __len__(self) -> int:
        return len(self.step)

    @property
    def steps(self) -> int:
        return len(np.unique(self.step))

    def step_slices(self) -> list[slice]:
        """The tokens of each step."""
        borders = np.flatnonzero(np.diff(self.step, prepend=-1, append=np.iinfo(np.int64).max))
        return [slice(int(a), int(b)) for a, b in pairwise(borders)]

    def counts(self, tokens: slice) -> npt.NDArray[np.int64]:
        """[L, experts] int64 rows that these tokens give every expert."""
        layers, experts = len(self.header.layers), self.header.experts
        flat = self.ids[tokens].astype(np.int64) + experts * np.arange(layers)[None, :, None]
        return np.bincount(flat.ravel(), minlength=layers * experts).reshape(layers, experts)
