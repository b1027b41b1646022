"""What happens to nodes of a live cluster: killed, frozen, cut off, slowed down."""

from __future__ import annotations

import os
import signal
from enum import StrEnum

from cluster.config import NodeConfig
from cluster.experiments.live.pace import PacedNode
from cluster.experiments.live.relay import Relay
from cluster.experiments.sim.model import Device, Model
from cluster.fleet.children import Child
from cluster.fleet.roles.process import Place


class Fault(StrEnum):
    """kill: SIGKILL. freeze: SIGSTOP. cut: the link between router and node carries nothing any more, while
    the controller still hears of the node. slow: it computes at a tenth of its speed.
    """

    kill = "kill"
    freeze = "freeze"
    cut = "cut"
    slow = "slow"

    def happen_to(self, child: Child) -> None:
        if self is Fault.kill:
            os.kill(child.pid, signal.SIGKILL)
        elif self is Fault.freeze:
            os.kill(child.pid, signal.SIGSTOP)
        else:
            child.tell("cut" if self is Fault.cut else "slow_down")


class RelayedNode(PacedNode):
    """A paced node that routers reach through a relay of its own."""

    def __init__(self, place: Place, config: NodeConfig, device: Device, model: Model) -> None:
        self._relay: Relay | None = None
        super().__init__(place, config, device, model)

    def build(self) -> None:
        super().build()
        self._relay = Relay(self.address)
        self._relay.__enter__()
        self.address = self._relay.address

    def cut(self) -> None:
        if self._relay is not None:
            self._relay.cut()

    def mend(self) -> None:
        if self._relay is not None:
            self._relay.mend()

    def close(self) -> None:
        super().close()
        if self._relay is not None:
            self._relay.__exit__()
