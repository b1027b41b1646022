"""What a router's steps asked of experts and nodes: cluster/balance/load.py's `fold`, in place.

A fold of values would check and copy everything in every step; here a step is one kernel, and values are made
when somebody asks, about once a second.
"""

from __future__ import annotations

import threading

import numpy as np

from cluster.balance.load import LoadStats, NodeLoad
from cluster.dispatch.pace import Pace
from cluster.dispatch.transport import Array, WireShape
from cluster.types import NodeId
from kernels.replicas import fold_step

SUMS = 10
"""Fields of NodeLoad."""

HALF_LIFE = 256.0
"""Steps after which a step counts half: some seconds of decoding."""


class LoadMeter:
    """One thread counts and ends steps; any thread reads `stats`.

    rows: [layers, experts] int64, those of the step under way.
    """

    def __init__(self, shape: WireShape, half_life: float = HALF_LIFE) -> None:
        self.rows = np.zeros((shape.layers, shape.experts), np.int64)
        self._top_k = shape.top_k
        self._half_life = half_life
        self._decay = 0.5 ** (1 / half_life)
        self._lock = threading.Lock()
        self._steps = self._tokens = self._squares = 0.0
        self._count = 0
        self._rows = np.zeros((shape.layers, shape.experts))
        self._distinct = np.zeros(shape.layers)
        self._names: tuple[NodeId, ...] = ()
        self._nodes: Array = np.zeros((0, SUMS))

    def end_step(self, pace: Pace) -> None:
        """Fold the step under way, with what its nodes answered; a step without rows is none."""
        decay = self._decay
        with self._lock:
            if pace.nodes != self._names:
                self._follow(pace.nodes)
            most = fold_step(self.rows, pace.sums, pace.links, decay, self._rows, self._distinct, self._nodes)
            if not most:
                return
            tokens = most // self._top_k
            self._count += 1
            self._steps = decay * self._steps + 1
            self._tokens = decay * self._tokens + tokens
            self._squares = decay**2 * self._squares + tokens

    def stats(self) -> LoadStats:
        """All steps that have ended."""
        with self._lock:
            nodes = zip(self._names, self._nodes.tolist(), strict=True)
            return LoadStats(
                self._half_life,
                self._steps,
                self._tokens,
                self._squares,
                self._rows.copy(),
                self._distinct.copy(),
                {name: NodeLoad(*sums) for name, sums in nodes},
                self._count,
            )

    def _follow(self, names: tuple[NodeId, ...]) -> None:
        """The table has other nodes now; those that left it are forgotten."""
        before = dict(zip(self._names, self._nodes, strict=True))
        nothing = np.zeros(SUMS)
        self._nodes = np.array([before.get(name, nothing) for name in names]).reshape(len(names), SUMS)
        self._names = names
