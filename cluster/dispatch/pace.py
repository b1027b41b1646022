"""How fast the nodes of a table are and what waits there, as their answers tell."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cluster.dispatch.transport import Array
from cluster.types import NodeId
from kernels import replicas

SLOW_AGAIN = 10.0
"""Two answers that came too late within so many times what the later one took are no accident: there was
hardly time for any other between them. A process that did not get its core for a moment owes one such answer.
"""


class Pace:
    """Arrays by a node's place in the table; kernels.replicas.observe_call fills them.

    loads: [nodes, 2] int64, messages waiting and service time in µs, as the node's last answer told; a link's
    `load` is its row. sums: [nodes, 4] float64, messages, rows, distinct experts and seconds of service since
    they were last taken; links: [nodes, 6] float64, those of timed round trips, as `timed` adds them.
    speed: [nodes] float64 > 0, rows per second. backlog: [nodes] float64 ≥ 0, seconds.
    """

    def __init__(self, nodes: Sequence[NodeId]) -> None:
        self.nodes = tuple(nodes)
        self.loads = np.zeros((len(nodes), 2), np.int64)
        self.sums = np.zeros((len(nodes), 4))
        self.links = np.zeros((len(nodes), 6))
        self.values: Array = np.zeros((4, len(nodes)))
        self.speed: Array = self.values[replicas.SPEED]
        self.backlog: Array = self.values[replicas.BACKLOG]
        self.speed[:] = 1.0
        self._overdue_at = np.full(len(nodes), -np.inf)

    def observe(self, experts: Array, pair_start: Array, rows: Array) -> None:
        """Count an answered call. experts: int32 [pairs] in the order of the nodes, of which node n has
        pair_start[n] … pair_start[n + 1]; rows: int64 [experts], += those of each."""
        replicas.observe_call(experts, pair_start, self.loads, len(rows), rows, self.sums, self.values)

    def overdue(self, node: int, rows: int, seconds: float, now: float) -> None:
        """Count rows that took the node `seconds`, although others had computed them by then: for its speed
        alone, they are in no other sum.

        Once more so soon, all that was known before weighs no more than this answer. What a node has shown in
        hundreds of answers would otherwise have it asked in time for none of as many again.
        """
        values = self.values
        keep = replicas.KEEP
        if now - self._overdue_at[node] < SLOW_AGAIN * seconds:
            keep = min(keep, rows / max(values[replicas.PAIRS, node], 1.0))
        self._overdue_at[node] = now
        values[replicas.PAIRS, node] = keep * values[replicas.PAIRS, node] + rows
        values[replicas.SECONDS, node] = keep * values[replicas.SECONDS, node] + seconds
        self.speed[node] = values[replicas.PAIRS, node] / values[replicas.SECONDS, node]

    def timed(self, node: int, seconds: float, bytes: int) -> None:
        """Count a round trip of so many bytes, both ways, that took `seconds` beside the node's service:
        trips, seconds, bytes, bytes², seconds², bytes · seconds, as NodeLoad has them."""
        self.links[node] += (1.0, seconds, bytes, float(bytes) ** 2, seconds**2, bytes * seconds)

    def over(self, nodes: Sequence[NodeId]) -> Pace:
        """What is known, for the nodes of another table; new ones are as fast as those here on average."""
        new = Pace(nodes)
        new.speed[:] = self.speed.mean() if self.nodes else 1.0
        for place, node in enumerate(new.nodes):
            if node in self.nodes:
                before = self.nodes.index(node)
                new.loads[place] = self.loads[before]
                new.sums[place] = self.sums[before]
                new.links[place] = self.links[before]
                new.values[:, place] = self.values[:, before]
                new._overdue_at[place] = self._overdue_at[before]
        return new
