"""What is simulated: the fleet, what befalls it, and the rows that it has to compute."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cluster.balance.fleet import Devices, Integers
from cluster.errors import ConfigError
from cluster.experiments.sim.model import Device, Model, Router
from cluster.types import NodeId


@dataclass(frozen=True)
class Fault:
    """What befalls a device at a time. kind: "fail", "return" (with what nobody else has, nothing more) or
    "slow" by a factor (1: well again). Raises ConfigError."""

    at: float
    device: int
    kind: str = "fail"
    factor: float = 1.0

    def __post_init__(self) -> None:
        if (
            self.kind not in ("fail", "return", "slow")
            or self.at < 0
            or not self.factor > 0
            or self.device < 0
        ):
            raise ConfigError(
                f"a fault {self.kind!r} of device {self.device} at {self.at} s by {self.factor}; "
                "it is fail, return or slow, at 0 s or later, by a factor above 0"
            )


@dataclass(frozen=True)
class Host:
    """A machine that runs several of a fleet's processes. cores: shared by all of them, each of which has one
    thread; devices: numbers of those that run there; routers: whether all routers do. Raises ConfigError."""

    cores: float
    devices: tuple[int, ...] = ()
    routers: bool = False

    def __post_init__(self) -> None:
        if not self.cores > 0:
            raise ConfigError(f"a host with {self.cores} cores; it needs more than 0")


ROUTER = Router()


@dataclass(frozen=True)
class Fleet:
    """devices: each one's class. names, site: as in cluster.balance.fleet. memory: [devices] bytes for
    experts, spares included. resident: [devices] bytes of the expert cache, -1 where all that is placed is
    resident. hosts: machines that several processes share; who is on none has one to itself."""

    devices: tuple[Device, ...]
    memory: Integers
    routers: int = 1
    router: Router = ROUTER
    resident: Integers | None = None
    faults: tuple[Fault, ...] = ()
    library: bool = True
    hosts: tuple[Host, ...] = ()

    def __post_init__(self) -> None:
        if self.routers < 1:
            raise ConfigError(f"a fleet with {self.routers} routers; it needs at least 1")
        placed = [device for host in self.hosts for device in host.devices]
        if len(set(placed)) < len(placed) or sum(host.routers for host in self.hosts) > 1:
            raise ConfigError("a device, or the routers, run on two hosts; each process runs on one")
        if any(not 0 <= device < len(self.devices) for device in placed):
            raise ConfigError(f"a host names a device beyond the fleet's {len(self.devices)}")
        if any(fault.device >= len(self.devices) for fault in self.faults):
            raise ConfigError(f"a fault names a device beyond the fleet's {len(self.devices)}")

    @property
    def shares_cores(self) -> bool:
        """Whether messages cost cores that somebody else may want: they are simulated one by one then."""
        return bool(self.hosts) or self.router.send_s > 0 or self.router.take_s > 0

    def for_balance(self, model: Model, rows: float) -> Devices:
        """As policies see it. speed: rows per second, computed (by the roofline, experts having `rows` at a
        time)
        and carried: a fast device behind a slow link is a slow one."""
        names = tuple(NodeId(f"d{index}") for index in range(len(self.devices)))
        speed = np.array([device.row_rate(model, max(rows, 1e-9)) for device in self.devices])
        bandwidth = np.array([device.bandwidth for device in self.devices])
        return Devices(names, speed, self.memory, bandwidth, np.zeros(len(names), np.int64))


@dataclass(frozen=True, eq=False)
class Work:
    """What routers have to do: rows [steps, layers, experts] int64, tokens [steps] int64."""

    rows: npt.NDArray[np.int64]
    tokens: npt.NDArray[np.int64]
