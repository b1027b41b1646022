"""A node that tells what it costs its machine's cores, not how long it took."""

from __future__ import annotations

import time
from typing import Any

from cluster.config import NodeConfig
from cluster.fleet.roles.node import NodeRole
from cluster.fleet.roles.process import Place

CPU_S = "cpu_s"


class MeteredNode(NodeRole):
    """A node role whose service times are core-seconds of the thread that computed, and whose stats have the
    core-seconds of its whole process.

    Processes of one machine wait for each other: what a wall clock says of one is the others' doing as well.
    """

    def __init__(self, place: Place, config: NodeConfig) -> None:
        super().__init__(place, config, time.thread_time)

    def stats(self) -> dict[str, Any]:
        return super().stats() | {CPU_S: time.process_time()}
